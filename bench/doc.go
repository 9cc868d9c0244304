// Command bench measures what publishing ports costs: the time of docker run
// and docker rm, processes and memory, with Portolan, with Docker's own bridge
// driver, and with a network plugin that does nothing about ports, which is the
// floor that no plugin can beat.
//
// Everything runs on private engines (package enginetest) in network namespaces
// of their own, in one go, with the drivers taking turns, so that what else the
// machine does is shared fairly. It needs root. Whatever way it ends, but for
// SIGKILL, nothing of it is left.
//
// The tables go to stdout and, with -o, between the two marker lines of a
// Markdown file. scripts/bench.sh builds the programs and runs it.
package main
