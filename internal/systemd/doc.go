// Package systemd is what a service of systemd's hears from it and tells it:
// the sockets that it is started with, how it fares, and the file descriptor
// store, in which systemd keeps sockets open while the service is restarted.
//
// # The store
//
// systemd compares each descriptor that it is given with all that it has (kcmp(2)):
// a thousand took half a second of its time, four thousand nine, in which nothing
// else on the host is started. So it gets two, the ends of a queue, and the sockets
// are messages in that queue (SCM_RIGHTS), which the next process receives. What is
// queued is open, as long as somebody has the queue. To store a socket is to send a
// message to oneself, and to remove one is to take all out and put the others back:
// systemd has no part in it, and a port that is given back is free at once.
//
// Sockets are stored as soon as they are told of, not when the service stops, so
// that they outlive a crash too.
package systemd
