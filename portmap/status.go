package portmap

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/portolan/portolan/proxy"
)

// Status is what has come of the traffic of published ports. Numbers of zero are
// left out.
type Status struct {
	Mappings []MappingStatus
	Host     []proxy.Sample // of all ports together, and of the kernel's conntrack table
}

// MappingStatus is the numbers of one mapping since it was published: of the
// proxy, and of Target.MaxFlows in the kernel (see Drop).
type MappingStatus struct {
	Endpoint string
	Mapping  Mapping
	Samples  []proxy.Sample
}

// Status is of now; mappings are sorted by endpoint.
func (p *Publisher) Status() (Status, error) {
	drops, err := p.cfg.Mapper.Drops()
	if err != nil {
		return Status{}, err
	}
	var st Status
	for _, s := range p.all() {
		s.mu.Lock()
		for _, m := range s.pub.Mappings {
			st.Mappings = append(st.Mappings, MappingStatus{s.pub.Endpoint, m, s.samples(m)})
		}
		s.mu.Unlock()
	}
	for i := range st.Mappings {
		ms := &st.Mappings[i]
		for _, d := range drops {
			if d.Endpoint == ms.Endpoint && d.Mapping == ms.Mapping && d.Packets > 0 {
				ms.Samples = append(ms.Samples, proxy.Sample{Name: "portolan_kernel_packets_dropped_total", Reason: "limit", Value: d.Packets})
			}
		}
	}
	slices.SortStableFunc(st.Mappings, func(a, b MappingStatus) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	st.Host, err = p.hostSamples()
	return st, err
}

// samples adds up what s's ports of a mapping have counted.
func (s *sandbox) samples(m Mapping) []proxy.Sample {
	var sum []proxy.Sample
	for _, port := range s.ports {
		w := port.wanted()
		if w.Proto != m.Proto || w.HostIP != m.HostIP || w.HostPort < m.HostPort || w.HostPort > m.HostPortEnd {
			continue
		}
		sum = addSamples(sum, port.samples())
	}
	return sum
}

func (p *hostPort) samples() []proxy.Sample {
	if c, ok := p.proxy.(proxy.Counted); ok {
		return c.Samples()
	}
	return p.counts.Samples() // of a block; elsewhere nil, and all zero
}

// addSamples adds those of more that are not zero.
func addSamples(sum, more []proxy.Sample) []proxy.Sample {
	for _, s := range more {
		if s.Value == 0 {
			continue
		}
		i := slices.IndexFunc(sum, func(o proxy.Sample) bool { return o.Name == s.Name && o.Reason == s.Reason })
		if i < 0 {
			sum = append(sum, s)
		} else {
			sum[i].Value += s.Value
		}
	}
	return sum
}

func (p *Publisher) hostSamples() ([]proxy.Sample, error) {
	all := []proxy.Sample{
		{Name: "portolan_proxy_open_files", Value: uint64(p.files.Taken())},
		{Name: "portolan_proxy_open_files_limit", Value: uint64(2 * proxy.MostConns())},
	}
	if p.blocks != nil {
		all = addSamples(all, p.blocks.samples())
	}
	for name, file := range map[string]string{"portolan_conntrack_entries": "nf_conntrack_count", "portolan_conntrack_entries_limit": "nf_conntrack_max"} {
		n, err := readNumber(filepath.Join(p.cfg.SysctlDir, "netfilter", file))
		if err != nil {
			return nil, err
		}
		all = append(all, proxy.Sample{Name: name, Value: n})
	}
	drops, err := conntrackDrops()
	slices.SortStableFunc(all, func(a, b proxy.Sample) int { return cmp.Compare(a.Name, b.Name) })
	return addSamples(nil, append(all, drops...)), err
}

// readNumber is 0 for a file that is not there: there is no conntrack then.
func readNumber(file string) (uint64, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// conntrackDrops is what the kernel did for want of room in its table, since the
// host's start: packets dropped, and entries evicted for new ones.
func conntrackDrops() ([]proxy.Sample, error) {
	text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseConntrackDrops(string(text))
}

// parseConntrackDrops reads a header and a line for each processor, of
// hexadecimal numbers.
func parseConntrackDrops(text string) ([]proxy.Sample, error) {
	samples := []proxy.Sample{
		{Name: "portolan_conntrack_drops_total"},
		{Name: "portolan_conntrack_evictions_total"},
	}
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if names == nil {
			names = fields
			continue
		}
		for i, column := range [...]string{"drop", "early_drop"} {
			at := slices.Index(names, column)
			if at < 0 || at >= len(fields) {
				continue
			}
			n, err := strconv.ParseUint(fields[at], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("read conntrack's numbers: %w", err)
			}
			samples[i].Value += n
		}
	}
	return samples, nil
}

// samples are those of the sockets that all blocks share.
func (bs *blocks) samples() (sum []proxy.Sample) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for _, p := range bs.proxies {
		sum = addSamples(sum, p.Samples())
	}
	return sum
}
