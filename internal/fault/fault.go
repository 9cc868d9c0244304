// Package fault marks the steps between which a crash must do no harm, so that
// a test can kill the process after each of them.
//
// A normal build has nothing of it: Point is empty and On is false. A build with
// the tag faults looks at the folder that PORTOLAN_FAULTS names in its
// environment, if there is one:
//
//   - the name of every point that is passed is appended to the file trace, a
//     line each, where that file exists;
//   - a file kill with the text "NAME N" ends the process by SIGKILL when NAME
//     stands there the N-th time; a file hold keeps it there, and everybody who
//     comes to a point meanwhile, until the file is gone.
//
// The files may come and go while the process runs: whoever wants to kill it in
// an operation empties trace, writes kill and begins the operation.
package fault
