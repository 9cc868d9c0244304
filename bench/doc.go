// Command bench measures what publishing ports costs: the time of docker run
// and docker rm, processes and memory, with Portolan, with Docker's own bridge
// driver, and with a network plugin that does nothing about ports, which is the
// floor that no plugin can beat; and what goes through a published port, beside
// the proxies that others use.
//
// It has sections, which run one after the other and each alone. Everything runs
// on private engines (package enginetest) in network namespaces of their own,
// with those that are compared taking turns, so that what else the machine does
// is shared fairly. It needs root. Whatever way it ends, but for SIGKILL, nothing
// of it is left. A peer that is missing or fails is a line that says so.
//
// The tables go to stdout and, with -o, between the marker lines of a Markdown
// file, with charts beside it, which the program in the folder plot draws.
// scripts/bench.sh builds the programs and runs it.
package main
