// Package systemd is what a service of systemd's hears from it and tells it:
// the sockets that it is started with, how it fares, and the file descriptor
// store, in which systemd keeps sockets open while the service is restarted.
//
// Without systemd (no NOTIFY_SOCKET, no LISTEN_FDS) there is nothing of it: Inherit
// returns nothing and Dial returns nil.
//
// # The store
//
// A Store hands sockets over as soon as it is told of them, not when the service
// stops, so that they outlive a crash too. What it costs is paid by systemd: it
// compares each socket with all that it has (kcmp(2)). Hence DefaultMax.
//
// Descriptors are removed by name alone (sd_notify(3)), and all of one message
// have one name. A name for each would be a message for each; so as many as go
// into a message share one, and when some of them go, the rest is stored again.
package systemd
