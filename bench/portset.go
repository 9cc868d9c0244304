package main

import "fmt"

// portSet is what a container publishes: host ports on the same of its own.
type portSet struct {
	name  string   // in tables
	count int      // of both protocols
	specs []string // of docker run -p
	last  int      // a UDP port of it; 0 is none
}

var (
	noPorts = portSet{name: "none"}

	// coturnPorts are those of coturn's own documentation.
	coturnPorts = portSet{
		name:  "16,384 + 3 (coturn)",
		count: 16384 + 3,
		specs: []string{"3478:3478/udp", "3478:3478/tcp", "5349:5349/tcp", "49152-65535:49152-65535/udp"},
		last:  65535,
	}
	allPorts = portSet{
		name:  "65,535 × 2 (all)",
		count: 2 * 65535,
		specs: []string{"1-65535:1-65535/tcp", "1-65535:1-65535/udp"},
		last:  65535,
	}
)

// udpPorts are n UDP ports in a row.
func udpPorts(n int) portSet {
	spec := fmt.Sprintf("%d:%[1]d/udp", firstPort)
	if n > 1 {
		spec = fmt.Sprintf("%d-%d:%[1]d-%[2]d/udp", firstPort, firstPort+n-1)
	}
	return portSet{name: grouped(n), count: n, specs: []string{spec}, last: firstPort + n - 1}
}

// arguments are those of docker run.
func (p portSet) arguments() (args []string) {
	for _, spec := range p.specs {
		args = append(args, "-p", spec)
	}
	return args
}
