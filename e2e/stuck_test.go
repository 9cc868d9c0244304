//go:build soak

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	mdl "github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/enginetest"
)

// stuckHost has a container c1 that publishes, on n1, and another network.
func stuckHost(t *testing.T, mapper string) *host {
	h := newPlainHost(t, mapper)
	for _, line := range []string{
		"network create -d portolan --subnet 172.30.0.0/24 n1",
		"network create -d portolan --subnet 172.31.0.0/24 n2",
		"run -d --name c1 --network n1 -p 5300:7000/udp " + image + " echo -udp 7000 -name c1",
	} {
		_, err := h.docker(strings.Fields(line)...)
		require.NoError(t, err)
	}
	h.answers(t, 5300, "c1")
	return h
}

// answers waits until the neighbour is answered by name.
func (h *host) answers(t *testing.T, port int, name string) {
	t.Helper()
	require.NoError(t, enginetest.Poll(patience, func() error {
		text, err := h.places()[0].send("udp", port, "hello", time.Second)
		if err == nil && !strings.HasSuffix(text, " "+name) {
			err = fmt.Errorf("it is not %s that answers: %q", name, text)
		}
		return err
	}))
}

// health is what is wrong.
func (h *host) health(t *testing.T) []string {
	t.Helper()
	var answer struct{ Problems []string }
	began := time.Now()
	require.NoError(t, h.ask("/Plugin.Health", &answer))
	require.Less(t, time.Since(began), 5*time.Second, "health is told at once")
	return answer.Problems
}

// TestStuckIPTables has the iptables programs stop in the middle, as they do
// where the kernel or the lock of all of them does not answer. The call that
// needs them fails in time and says why, health says so before; other networks
// and the traffic go on; and when it is over all is well.
func TestStuckIPTables(t *testing.T) {
	t.Parallel()
	h := stuckHost(t, "iptables")
	// The daemon takes its programs from the first folder of the PATH.
	stuck := filepath.Join(h.engine.Dir, "stuck")
	require.NoError(t, h.stopDaemon())
	for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
		real, err := enginetest.Run(h.command("which", name))
		require.NoError(t, err)
		script := fmt.Sprintf("#!/bin/sh\n[ ! -e %s ] || kill -STOP $$\nexec %s \"$@\"\n", stuck, real)
		require.NoError(t, os.WriteFile(filepath.Join(h.bin, name), []byte(script), 0o755))
	}
	require.NoError(t, h.startDaemon("iptables"))
	require.NoError(t, h.healthy(patience))

	require.NoError(t, os.WriteFile(stuck, nil, 0o600))
	began := time.Now()
	failed := make(chan error, 1)
	go func() {
		_, err := h.docker("run", "-d", "--name", "c2", "--network", "n1", "-p", "5301:7000/udp", image, "sleep")
		failed <- err
	}()
	require.NoError(t, enginetest.Poll(time.Minute, func() error {
		for _, p := range h.health(t) {
			if strings.HasPrefix(p, "check: ") && strings.Contains(p, "no end for ") {
				return nil
			}
		}
		return fmt.Errorf("health knows of nothing")
	}))
	select {
	case err := <-failed:
		require.Fail(t, "the call has ended before health has said anything", "%v", err)
	default:
	}
	h.answers(t, 5300, "c1")
	_, err := h.docker("run", "-d", "--name", "c3", "--network", "n2", image, "sleep")
	require.NoError(t, err, "a container of another network, which publishes nothing")
	_, err = h.docker("rm", "-f", "c3")
	require.NoError(t, err)
	ls, err := enginetest.Run(h.command("portolan", "ls"))
	require.NoError(t, err)
	require.Contains(t, ls, "5300->7000/udp")

	err = <-failed
	t.Logf("after %s: %v", time.Since(began).Round(time.Second), err)
	require.ErrorContains(t, err, "iptables")
	require.Regexp(t, `no end for 20?s; it was killed`, err.Error())
	require.Less(t, time.Since(began), 2*time.Minute)

	require.NoError(t, os.Remove(stuck))
	require.NoError(t, h.healthy(2*time.Minute), "when it is over")
	_, err = h.docker("rm", "-f", "c2")
	require.NoError(t, err)
	_, err = h.docker("run", "-d", "--name", "c2", "--network", "n1", "-p", "5301:7000/udp", image, "echo", "-udp", "7000", "-name", "c2")
	require.NoError(t, err)
	h.answers(t, 5301, "c2")
	h.answers(t, 5300, "c1")
}

// TestSlowStart has a start held up after the container's ports were published, as
// by a volume of another host, for longer than it takes to look for the dead.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	h := stuckHost(t, "nftables")
	require.NoError(t, h.engine.Pause())
	started := make(chan error, 1)
	go func() {
		_, err := h.docker("run", "-d", "--name", "c2", "--network", "n1", "-p", "5301:7000/udp", image, "echo", "-udp", "7000", "-name", "c2")
		started <- err
	}()
	began := time.Now()
	looked := enginetest.Poll(2*time.Minute, func() error {
		ls, err := enginetest.Run(h.command("portolan", "ls"))
		switch {
		case err != nil:
			return err
		case !strings.Contains(ls, "5301->7000/udp"):
			return fmt.Errorf("after %s it is not published: %s", time.Since(began), ls)
		case time.Since(began) < 65*time.Second: // they are looked for every 30 s, and 30 s old
			return fmt.Errorf("waiting")
		}
		return nil
	})
	require.NoError(t, h.engine.Resume())
	require.NoError(t, looked)
	require.NoError(t, <-started)
	h.answers(t, 5301, "c2")
}

// TestSlowNetlink has other programs change nftables and links of the host all
// the time, each change of nftables with the kernel's one lock for as long as it
// takes to sort half a million intervals. Containers come and go all the same.
func TestSlowNetlink(t *testing.T) {
	t.Parallel()
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			h := stuckHost(t, mapper)
			stop := make(chan struct{})
			var busy sync.WaitGroup
			changes, links := 0, 0
			ready := make(chan error, 1)
			busy.Go(func() { changes = changeIntervals(h.engine.Host, ready, stop) })
			require.NoError(t, <-ready)
			busy.Go(func() { links = changeLinks(h.engine.Peer, stop) })
			began := time.Now()
			for i := range 5 {
				_, err := h.docker("run", "-d", "--name", "c2", "--network", "n1", "-p", "5301:7000/udp", image, "echo", "-udp", "7000", "-name", fmt.Sprint("c2-", i))
				require.NoError(t, err)
				h.answers(t, 5301, fmt.Sprint("c2-", i))
				_, err = h.docker("rm", "-f", "c2")
				require.NoError(t, err)
			}
			h.answers(t, 5300, "c1")
			close(stop)
			busy.Wait()
			t.Logf("5 containers in %s; %d changes of nftables and %d of links meanwhile", time.Since(began).Round(time.Millisecond), changes, links)
			assert.Positive(t, changes)
			assert.Positive(t, links)
			require.NoError(t, h.healthy(patience))
		})
	}
}

// changeIntervals fills a set of intervals, and then adds and removes one more
// until it is stopped. The table is gone afterwards.
func changeIntervals(n enginetest.Namespace, ready chan<- error, stop <-chan struct{}) (changes int) {
	_ = n.Do(func() error {
		large := func(c *mdl.Conn) error { // a batch is one message
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			})
		}
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(large))
		if err != nil {
			ready <- err
			return err
		}
		defer func() { _ = conn.CloseLasting() }()
		table := conn.AddTable(&nftables.Table{Name: "slow", Family: nftables.TableFamilyINet})
		set := &nftables.Set{Table: table, Name: "s", KeyType: nftables.TypeIPAddr, Interval: true}
		err = conn.AddSet(set, nil)
		for i := uint32(0); i < 500_000 && err == nil; i += 400 {
			var es []nftables.SetElement
			for j := i; j < i+400; j++ {
				es = append(es, interval(4*j)...)
			}
			err = conn.SetAddElements(set, es)
			if err == nil && i%100_000 == 0 {
				err = conn.Flush()
			}
		}
		if err == nil {
			err = conn.Flush()
		}
		ready <- err
		for more := interval(1 << 30); err == nil; changes++ {
			select {
			case <-stop:
				conn.DelTable(table)
				return conn.Flush()
			default:
			}
			if changes%2 == 0 {
				err = conn.SetAddElements(set, more)
			} else {
				err = conn.SetDeleteElements(set, more)
			}
			if err == nil {
				err = conn.Flush()
			}
		}
		return err
	})
	return changes
}

// interval is two addresses from one on.
func interval(from uint32) []nftables.SetElement {
	key := func(n uint32) []byte { return net.IP(binary.BigEndian.AppendUint32(nil, n)) }
	return []nftables.SetElement{{Key: key(from)}, {Key: key(from + 2), IntervalEnd: true}}
}

// changeLinks makes and removes a device until it is stopped. The kernel has one
// lock for the links of all namespaces.
func changeLinks(n enginetest.Namespace, stop <-chan struct{}) (changes int) {
	_ = n.Do(func() error {
		for ; ; changes++ {
			select {
			case <-stop:
				return nil
			default:
			}
			la := netlink.NewLinkAttrs()
			la.Name = "slow0"
			link := &netlink.Bridge{LinkAttrs: la}
			if err := netlink.LinkAdd(link); err != nil {
				return err
			}
			if err := netlink.LinkDel(link); err != nil {
				return err
			}
		}
	})
	return changes
}
