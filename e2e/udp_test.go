package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// TestUDPFollows has clients that never pause and keep their source port, on
// every path, while the container behind the port is restarted, replaced, moved
// to another address and port, cut off though it runs on, and removed.
//
// As soon as the new container answers anybody on a path, it answers the next
// datagram of the client there, and nobody else does. Once a port is released,
// nobody does. Flows that only have the number in common are left alone: their
// conntrack entries stay the same ones.
func TestUDPFollows(t *testing.T) {
	t.Parallel()
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) { testUDPFollows(t, mapper) })
	}
}

func testUDPFollows(t *testing.T, mapper string) {
	h := newPlainHost(t, mapper)
	docker := func(line string, args ...any) {
		t.Helper()
		_, err := h.docker(strings.Fields(fmt.Sprintf(line, args...))...)
		require.NoError(t, err)
	}
	run := func(name, publish, address string, port int) {
		t.Helper()
		docker("run -d --name %s --network n1 --ip 172.30.0.%s --ip6 fd00:30::%s -p %s:%d/udp %s echo -udp %[5]d -name %[1]s",
			name, address, address, publish, port, image)
	}
	docker("network create -d portolan --subnet 172.30.0.0/24 --ipv6 --subnet fd00:30::/64 n1")
	docker("network create -d portolan --internal --subnet 172.31.0.0/24 n2")
	run("first", "5300", "11", 7000)

	// The same number elsewhere.
	lan, err := enginetest.Start("echo", h.logFile(), h.command("neighbour", "demo", "echo", "-udp", "5300", "-name", "lan"))
	require.NoError(t, err)
	defer func() { _ = lan.Stop(9, patience) }()
	docker("run -d --name tcp --network n1 -p 5300:7000 %s echo -tcp 7000 -name tcp", image)
	docker("run -d --name out --network n1 %s send -count 1000000 -interval 20ms udp %s:5300", image, enginetest.PeerIPv4)
	run("address", enginetest.HostIPv4+":5400", "21", 7000)
	run("loopback", "127.0.0.1:5400", "22", 7000)
	places := h.places()
	tcp := talkative(t, places[0], "tcp", 5300)
	local := talkative(t, places[2], "udp", 5400)
	others := map[string]string{
		"TCP from the neighbour":     "tcp .*src=" + enginetest.PeerIPv4 + " dst=" + enginetest.HostIPv4 + " .*dport=5300 ",
		"UDP on the other address":   "udp .*src=127.0.0.1 dst=127.0.0.1 sport=" + portOf(local.LocalAddr()) + " dport=5400 ",
		"a container's, to the same": "udp .*src=172.30.0.[0-9]+ dst=" + enginetest.PeerIPv4 + " .*dport=5300 ",
	}
	before := map[string]string{}
	for name, pattern := range others {
		require.NoError(t, enginetest.Poll(patience, func() error {
			before[name], err = h.flowID(pattern)
			return err
		}), name)
	}

	var clients []*restless
	for _, p := range places {
		clients = append(clients, startRestless(t, p, 5300))
	}
	second := startRestless(t, places[0], 5400)
	served := func(name string) {
		t.Helper()
		_, err := exchange(local, "still", 5*time.Second) // conntrack forgets it in 30 s
		require.NoError(t, err)
		var all sync.WaitGroup
		for _, c := range clients {
			all.Go(func() { c.served(t, h, name) })
		}
		all.Wait()
		require.False(t, t.Failed())
	}
	served("first")
	docker("restart -t 5 first")
	served("first")
	docker("rm -f first")
	run("second", "5300", "11", 7000)
	served("second")
	docker("rm -f second")
	run("third", "5300", "12", 7001)
	served("third")

	// A container that runs on, in another role. It has the port as long as it is on
	// any network of Portolan's, for the next that becomes its gateway.
	docker("network connect n2 third")
	docker("network disconnect n1 third")
	for _, c := range clients {
		c.unserved(t)
	}
	docker("network disconnect n2 third")
	docker("network connect n2 third")
	run("fourth", "5300", "13", 7000)
	served("fourth")
	inside, err := h.docker("inspect", "-f", "{{.NetworkSettings.Networks.n2.IPAddress}}", "third")
	require.NoError(t, err)
	still, err := place{ns: h.engine.Host, addr: inside}.send("udp", 7001, "hello", 5*time.Second)
	require.NoError(t, err)
	require.Contains(t, still, "third")
	docker("rm -f third")

	// One of two host addresses.
	docker("rm -f address")
	run("address2", enginetest.HostIPv4+":5400", "23", 7001)
	second.served(t, h, "address2")

	for name, pattern := range others {
		now, err := h.flowID(pattern)
		assert.NoError(t, err, name)
		assert.Equal(t, before[name], now, "the conntrack entry of %s", name)
	}
	for _, c := range []net.Conn{tcp, local} {
		_, err := exchange(c, "still", 5*time.Second)
		require.NoError(t, err)
	}

	// The proxy in place of the hooks; the kernel goes on meanwhile.
	restarted := clients[0].next()
	require.NoError(t, h.stopDaemon())
	require.NoError(t, h.startDaemon("", "--hooks", "off"))
	require.NoError(t, h.healthy(patience))
	served("fourth")
	assert.Empty(t, clients[0].missing(restarted), "datagrams of the neighbour, while the daemon was restarted")
	docker("rm -f fourth")
	for _, c := range clients {
		c.unserved(t)
	}
	run("fifth", "5300", "14", 7001)
	served("fifth")
	for _, c := range append(clients, second) {
		c.stop(t)
	}
}

// talkative is a connection on which something has been said.
func talkative(t *testing.T, p place, network string, port int) net.Conn {
	t.Helper()
	var c net.Conn
	require.NoError(t, enginetest.Poll(patience, func() (err error) {
		if c, err = p.open(network, port, time.Second); err != nil {
			return err
		}
		if _, err = exchange(c, "hello", time.Second); err != nil {
			c.Close()
		}
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

func portOf(a net.Addr) string { return strconv.Itoa(a.(*net.UDPAddr).Port) }

// flowID is the kernel's number of the conntrack entry that matches. It changes
// with the entry.
func (h *host) flowID(pattern string) (string, error) {
	out, err := h.engine.Exec("sh", "-c", "conntrack -L -o id 2>/dev/null")
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?m)^`+pattern+`.* id=(\d+)`).FindAllStringSubmatch(out, -1)
	if len(found) != 1 {
		return "", fmt.Errorf("%d conntrack entries are like %s:\n%s", len(found), pattern, out)
	}
	return found[0][1], nil
}

// restless is a client with one connected UDP socket, which sends a numbered
// datagram every 5 ms, answered or not.
type restless struct {
	place
	port int
	conn net.Conn
	done sync.WaitGroup

	mu     sync.Mutex // guards below
	names  []string   // who has answered each datagram, "" for nobody
	order  []string   // whom answers came from, when that changed
	ending bool
}

func startRestless(t *testing.T, p place, port int) *restless {
	conn, err := p.open("udp", port, time.Second)
	require.NoError(t, err)
	c := &restless{place: p, port: port, conn: conn}
	t.Cleanup(func() {
		c.mu.Lock()
		c.ending = true
		c.mu.Unlock()
		conn.Close()
		c.done.Wait()
	})
	c.done.Go(c.send)
	c.done.Go(c.receive)
	return c
}

func (c *restless) send() {
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		c.mu.Lock()
		n, ending := len(c.names), c.ending
		if !ending {
			c.names = append(c.names, "")
		}
		c.mu.Unlock()
		if ending {
			return
		}
		// What ICMP has said of the last one is no reason to stop.
		_, _ = c.conn.Write([]byte(strconv.Itoa(n)))
	}
}

func (c *restless) receive() {
	buf := make([]byte, 2048)
	for {
		n, err := c.conn.Read(buf)
		c.mu.Lock()
		ending := c.ending
		if e, bad := parseEchoed(string(buf[:n])); err == nil && bad == nil {
			if i, _ := strconv.Atoi(e.payload); i < len(c.names) {
				c.names[i] = e.name
			}
			if len(c.order) == 0 || c.order[len(c.order)-1] != e.name {
				c.order = append(c.order, e.name)
			}
		}
		c.mu.Unlock()
		if err != nil && ending {
			return
		}
	}
}

// next is the number of the first datagram that is not sent yet.
func (c *restless) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names)
}

// answers are those to n datagrams from one on, when the first has one, or will
// have none.
func (c *restless) answers(from, n int) (names []string) {
	_ = enginetest.Poll(patience, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if names = nil; len(c.names) < from+n {
			return fmt.Errorf("%d datagrams are sent", len(c.names))
		}
		names = slices.Clone(c.names[from : from+n])
		if names[0] == "" {
			return fmt.Errorf("no answer to datagram %d", from)
		}
		return nil
	})
	return names
}

// served waits until a fresh client is answered by name. The first datagram that
// this one sends from then on is answered by it, too, and none by anybody else.
// On a busy machine the container's socket may overflow; then it is tried again.
func (c *restless) served(t *testing.T, h *host, name string) {
	for range 5 {
		lost := h.overflows(name)
		err := enginetest.Poll(patience, func() error { return c.fresh(name) })
		if !assert.NoError(t, err, "%s: a fresh client", c.name) {
			return
		}
		names := c.answers(c.next(), 50)
		if names != nil && names[0] == "" && h.overflows(name) != lost {
			continue
		}
		if assert.NotEmpty(t, names, "%s: nothing is sent any more", c.name) {
			assert.Equal(t, name, names[0], "%s: who answers the first datagram after %s has answered another client", c.name, name)
			assert.Subset(t, []string{name, ""}, names, "%s: who answers after %s has answered another client", c.name, name)
		}
		return
	}
	assert.Fail(t, "the container's socket overflows again and again", "%s, %s", c.name, name)
}

// fresh is a client with a port of its own, and no error if name answers it.
func (c *restless) fresh(name string) error {
	text, err := c.place.send("udp", c.port, "fresh", 200*time.Millisecond)
	if err != nil {
		return err
	}
	if e, err := parseEchoed(text); err != nil || e.name != name {
		return fmt.Errorf("it is not %s that answers: %q", name, text)
	}
	return nil
}

// overflows is how many datagrams have found no room in a socket of a
// container's; "" if it cannot be told.
func (h *host) overflows(name string) string {
	pid, err := h.docker("inspect", "-f", "{{.State.Pid}}", name)
	if err != nil {
		return ""
	}
	all := ""
	for _, file := range []string{"snmp", "snmp6"} {
		text, err := os.ReadFile(filepath.Join("/proc", pid, "net", file))
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) > 5 && f[0] == "Udp:" {
				all += " " + f[5]
			} else if len(f) > 1 && f[0] == "Udp6RcvbufErrors" {
				all += " " + f[1]
			}
		}
	}
	return all
}

// unserved checks that nobody answers what is sent from now on.
func (c *restless) unserved(t *testing.T) {
	from := c.next()
	require.NoError(t, enginetest.Poll(patience, func() error {
		if sent := c.next() - from; sent < 100 {
			return fmt.Errorf("%d datagrams are sent", sent)
		}
		return nil
	}))
	c.mu.Lock()
	defer c.mu.Unlock()
	answered := slices.DeleteFunc(slices.Clone(c.names[from:]), func(name string) bool { return name == "" })
	assert.Empty(t, answered, "%s: answers after the port was released", c.name)
}

// missing are the numbers of the datagrams from one on that have no answer, but
// for the last 100.
func (c *restless) missing(from int) (numbers []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := from; i < len(c.names)-100; i++ {
		if c.names[i] == "" {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// stop ends the client. Nobody who had lost the port has answered again.
func (c *restless) stop(t *testing.T) {
	c.mu.Lock()
	c.ending = true
	order := slices.Clone(c.order)
	c.mu.Unlock()
	c.conn.Close()
	c.done.Wait()
	slices.Sort(order)
	assert.Equal(t, len(slices.Compact(slices.Clone(order))), len(order), "%s: somebody has answered again: %q", c.name, c.order)
}
