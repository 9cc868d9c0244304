package sklookup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/portolan/portolan/internal/fault"
)

// ReservedPorts is the sysctl that keeps the kernel from choosing a port, below
// /proc/sys/net.
const ReservedPorts = "ipv4/ip_local_reserved_ports"

// MinFree is how many ports of ip_local_port_range stay free for the kernel to
// choose, at its end, whatever is held.
const MinFree = 4096

// portSet is a set of ports.
type portSet [1 << 16]bool

// reserved is our part of ip_local_reserved_ports.
type reserved struct {
	dir    string
	record func(added string) error
	ours   string   // as recorded
	floor  *portSet // what stays beside the ranges that are held, if any does
}

// check says whether the sysctl can be written.
func (r *reserved) check() error {
	f, err := os.OpenFile(filepath.Join(r.dir, ReservedPorts), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("keep the kernel from choosing ports that are held: %w", err)
	}
	return f.Close()
}

// set reserves the ports of ranges, and no others of ours. What was there before
// us stays.
func (r *reserved) set(ranges []portRange) error {
	now, err := readPorts(r.dir)
	if err != nil {
		return err
	}
	ours, err := parsePorts(r.ours)
	if err != nil {
		return err
	}
	var want portSet
	for _, p := range ranges {
		for port := int(p.first); port <= int(p.last); port++ {
			want[port] = true
		}
	}
	if r.floor != nil {
		for port := range want {
			want[port] = want[port] || r.floor[port]
		}
	}
	r.keepFree(&want, now, ours)
	var final, added, recorded portSet
	for port := range final {
		theirs := now[port] && !ours[port]
		added[port] = want[port] && !theirs
		final[port] = theirs || added[port]
		recorded[port] = added[port] || ours[port]
	}
	if final == *now {
		return r.note(added.String())
	}
	// On record is all that may be there because of us, at any moment.
	if err := r.note(recorded.String()); err != nil {
		return err
	}
	if err := writePorts(r.dir, &final); err != nil {
		return err
	}
	fault.Point("reserved ports set")
	return r.note(added.String())
}

func (r *reserved) note(added string) error {
	if added == r.ours {
		return nil
	}
	if err := r.record(added); err != nil {
		return err
	}
	r.ours = added
	return nil
}

// keepFree takes ports out of want, from the end of ip_local_port_range down,
// until enough of it are free.
func (r *reserved) keepFree(want, now, ours *portSet) {
	first, last := 32768, 60999 // the kernel's default
	if b, err := os.ReadFile(filepath.Join(r.dir, "ipv4/ip_local_port_range")); err == nil {
		_, _ = fmt.Sscan(string(b), &first, &last)
	}
	first, last = max(first, 1), min(last, len(want)-1)
	free := 0
	for port := first; port <= last; port++ {
		if !want[port] && (!now[port] || ours[port]) {
			free++
		}
	}
	for port := last; port >= first && free < MinFree; port-- {
		if want[port] {
			want[port] = false
			free++
		}
	}
}

// Unreserve takes ports out of ip_local_reserved_ports that an earlier process
// recorded. dir is /proc/sys/net where it can be written.
func Unreserve(dir, added string) error {
	ours, err := parsePorts(added)
	if err != nil {
		return err
	}
	now, err := readPorts(dir)
	if err != nil {
		return err
	}
	rest := *now
	for port := range rest {
		rest[port] = rest[port] && !ours[port]
	}
	if rest == *now {
		return nil
	}
	return writePorts(dir, &rest)
}

func readPorts(dir string) (*portSet, error) {
	b, err := os.ReadFile(filepath.Join(dir, ReservedPorts))
	if err != nil {
		return nil, fmt.Errorf("read reserved ports: %w", err)
	}
	return parsePorts(strings.TrimSpace(string(b)))
}

func writePorts(dir string, ports *portSet) error {
	// No O_CREATE and no O_TRUNC: this is no file.
	f, err := os.OpenFile(filepath.Join(dir, ReservedPorts), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(ports.String() + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("reserve ports: %w", err)
	}
	return nil
}

// parsePorts reads what String writes: 8080,10000-19999.
func parsePorts(list string) (*portSet, error) {
	ports := new(portSet)
	if list == "" {
		return ports, nil
	}
	for item := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err := errors.Join(err, err2); err != nil || b < a {
			return nil, fmt.Errorf("reserved ports %q: not a list of ports", list)
		}
		for port := a; port <= b; port++ {
			ports[port] = true
		}
	}
	return ports, nil
}

// String is as in ip_local_reserved_ports.
func (s *portSet) String() string {
	var items []string
	for port := 0; port < len(s); port++ {
		if !s[port] {
			continue
		}
		last := port
		for last+1 < len(s) && s[last+1] {
			last++
		}
		item := strconv.Itoa(port)
		if last > port {
			item += "-" + strconv.Itoa(last)
		}
		items = append(items, item)
		port = last
	}
	return strings.Join(items, ",")
}
