package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/enginetest"
)

// conntrack is the cost of a look through the kernel's conntrack table: the
// kernel walks all buckets, which all network namespaces share.
type conntrack struct {
	buckets int
	reads   []time.Duration
}

const conntrackBuckets = "/proc/sys/net/netfilter/nf_conntrack_buckets"

func measureConntrack(in enginetest.Namespace) (c conntrack, err error) {
	b, err := os.ReadFile(conntrackBuckets)
	if err != nil {
		return c, err
	}
	if c.buckets, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return c, fmt.Errorf("%s: %w", conntrackBuckets, err)
	}
	err = in.Do(func() error {
		for range 15 {
			start := time.Now()
			if _, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4); err != nil {
				return fmt.Errorf("list the conntrack table: %w", err)
			}
			c.reads = append(c.reads, time.Since(start))
		}
		return nil
	})
	return c, err
}
