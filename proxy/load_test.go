package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// serveEnv has this program be a proxy, "udp 127.0.0.1:5353 127.0.0.1:53", so
// that its processor time is its own. peersEnv names docker-proxies to measure
// beside it, with colons between.
const (
	serveEnv = "PROXY_BENCH_SERVE"
	peersEnv = "PROXY_BENCH_PEERS"
)

func serveForBenchmarks(what string) {
	f := strings.Fields(what)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	backend := to(netip.MustParseAddrPort(f[2]))
	var p Proxy
	if f[0] == "udp" {
		c, err := net.ListenPacket("udp", f[1])
		if err != nil {
			panic(err)
		}
		p = ServeUDP(c.(*net.UDPConn), backend, UDPConfig{})
	} else {
		ln, err := net.Listen("tcp", f[1])
		if err != nil {
			panic(err)
		}
		p = ServeTCP(ln.(*net.TCPListener), backend, TCPConfig{})
	}
	<-ctx.Done()
	_ = p.Close()
}

// peers are the proxies to measure, and "direct" without any.
func peers() []string {
	all := []string{"direct", "portolan"}
	for _, p := range filepath.SplitList(os.Getenv(peersEnv)) {
		if p != "" {
			all = append(all, p)
		}
	}
	return all
}

// peer is a proxy in a process of its own.
type peer struct {
	addr netip.AddrPort
	pid  int // 0: none
}

func startPeer(b *testing.B, name, proto string, backend netip.AddrPort) peer {
	b.Helper()
	if name == "direct" {
		return peer{addr: backend}
	}
	front := freePort(b, proto)
	cmd := exec.Command(name, "-proto", proto, "-host-ip", front.Addr().String(), "-host-port", fmt.Sprint(front.Port()),
		"-container-ip", backend.Addr().String(), "-container-port", fmt.Sprint(backend.Port()))
	if name == "portolan" {
		self, err := os.Executable()
		require.NoError(b, err)
		cmd = exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", serveEnv, proto, front, backend))
	}
	status, err := os.CreateTemp(b.TempDir(), "status") // docker-proxy's descriptor 3
	require.NoError(b, err)
	cmd.ExtraFiles = []*os.File{status}
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		_ = status.Close()
	})
	return peer{front, cmd.Process.Pid}
}

func freePort(b *testing.B, proto string) netip.AddrPort {
	b.Helper()
	if proto == "udp" {
		c := listenUDP(b, "udp4", "127.0.0.1")
		defer func() { _ = c.Close() }()
		return addrPort(c.LocalAddr())
	}
	ln := listenTCP(b, "tcp4", "127.0.0.1")
	defer func() { _ = ln.Close() }()
	return addrPort(ln.Addr())
}

// cpu is the processor time of the peer, to a hundredth of a second.
func (p peer) cpu(b *testing.B) time.Duration {
	if p.pid == 0 {
		return 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	require.NoError(b, err)
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	require.NoError(b, err)
	system, err := strconv.Atoi(f[12])
	require.NoError(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// echoLoad answers every datagram, on a thread of its own, with little work.
func echoLoad(b *testing.B) netip.AddrPort {
	b.Helper()
	c := listenUDP(b, "udp4", "127.0.0.1")
	addr := addrPort(c.LocalAddr())
	fd, err := unix.Dup(fdOf(c))
	require.NoError(b, err)
	enlargeBuffers(fd)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		batch, err := newBatch()
		if err != nil {
			return
		}
		defer batch.free()
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := batch.receiveRequests(fd)
			if err != nil {
				select {
				case <-stop:
					return
				default:
				}
				_, _ = unix.Poll(poll, 100)
				continue
			}
			for i := range n {
				batch.iovs[i].SetLen(batch.size[i])
				batch.asking[i].SetControllen(0)
			}
			batch.used = slots
			for sent := 0; sent < n; {
				k, _ := sendmmsg(fd, batch.asking[sent:n])
				sent += max(k, 1)
			}
			for i := range n {
				batch.iovs[i].SetLen(1 << 16)
			}
		}
	}()
	b.Cleanup(func() { close(stop); <-stopped; _ = unix.Close(fd) })
	_ = c.Close()
	return addr
}

// udpLoad is clients that each have window datagrams of 64 bytes on their way.
type udpLoad struct {
	epoll      int
	out        map[int32]int // by socket
	window     int
	batch      *batch
	message    unix.Iovec
	done, lost int
}

func newUDPLoad(b *testing.B, addr netip.AddrPort, clients, window int) *udpLoad {
	b.Helper()
	l := &udpLoad{out: make(map[int32]int), window: window}
	var err error
	l.batch, err = newBatch()
	require.NoError(b, err)
	b.Cleanup(l.batch.free)
	l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	require.NoError(b, err)
	b.Cleanup(func() { _ = unix.Close(l.epoll) })
	msg := make([]byte, 64)
	l.message.Base = &msg[0]
	l.message.SetLen(len(msg))
	for range clients {
		fd, err := connectUDP(addr)
		require.NoError(b, err)
		b.Cleanup(func() { _ = unix.Close(fd) })
		enlargeBuffers(fd)
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		require.NoError(b, unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
		l.out[int32(fd)] = 0
	}
	return l
}

// run makes n round trips. What has not come after 200 ms is lost.
func (l *udpLoad) run(n int) {
	l.done, l.lost = 0, 0
	l.fill()
	var events [maxEvents]unix.EpollEvent
	for l.done < n {
		k, _ := epollPoll(l.epoll, events[:])
		if k == 0 {
			if k, _ = unix.EpollWait(l.epoll, events[:], 200); k == 0 {
				for fd, out := range l.out {
					l.lost += out
					l.out[fd] = 0
				}
				l.fill()
			}
		}
		for _, ev := range events[:max(k, 0)] {
			got, err := l.batch.receiveReplies(int(ev.Fd), 0, min(l.window, slots))
			if err != nil {
				continue
			}
			l.done += got
			for range got {
				_ = send(int(ev.Fd), &l.message)
			}
		}
	}
}

// settle takes what is on its way.
func (l *udpLoad) settle() {
	var events [maxEvents]unix.EpollEvent
	for k := 1; k > 0; {
		k, _ = unix.EpollWait(l.epoll, events[:], 50)
		for _, ev := range events[:max(k, 0)] {
			_, _ = l.batch.receiveReplies(int(ev.Fd), 0, slots)
		}
	}
}

func (l *udpLoad) fill() {
	for fd := range l.out {
		for range l.window {
			_ = send(int(fd), &l.message)
		}
		l.out[fd] = l.window
	}
}

// await waits until the proxy is up.
func (l *udpLoad) await(b *testing.B, addr netip.AddrPort) {
	b.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	require.NoError(b, err)
	defer func() { _ = c.Close() }()
	for range 100 {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 9)); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	require.FailNow(b, "the proxy does not answer")
}

// BenchmarkUDPLoad is many clients at once, by proxies in processes of their own.
// What to compare is several runs of all peers in turn, as -count does not do it:
// for i in 1 2 3 4 5; do go test -run ^$ -bench UDPLoad -benchtime 100000x; done.
func BenchmarkUDPLoad(b *testing.B) {
	for _, load := range []struct{ clients, window int }{{1, 1}, {32, 1}, {16, 16}, {256, 4}} {
		for _, name := range peers() {
			b.Run(fmt.Sprintf("%dx%d/%s", load.clients, load.window, name), func(b *testing.B) {
				backend := echoLoad(b)
				p := startPeer(b, name, "udp", backend)
				l := newUDPLoad(b, p.addr, load.clients, load.window)
				l.await(b, p.addr)
				l.run(1000)
				l.settle()
				b.ResetTimer()
				before := p.cpu(b)
				l.run(b.N)
				b.StopTimer()
				b.ReportMetric(float64((p.cpu(b)-before).Nanoseconds())/float64(b.N), "proxy-cpu-ns/op")
				b.ReportMetric(float64(l.lost), "lost")
			})
		}
	}
}

func abortTCP(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// tcpLoad has so many clients make n round trips of 64 bytes, each by a
// connection of its own if they are to connect, which it resets.
func tcpLoad(b *testing.B, addr netip.AddrPort, clients, n int, connect bool) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			msg := make([]byte, 64)
			var c *net.TCPConn
			defer func() {
				if c != nil {
					abortTCP(c)
				}
			}()
			for left.Add(-1) >= 0 {
				var err error
				if c == nil {
					if c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr)); err != nil {
						b.Error(err)
						return
					}
				}
				if _, err = c.Write(msg); err == nil {
					_, err = io.ReadFull(c, msg)
				}
				if err != nil {
					b.Error(err)
					return
				}
				if connect {
					abortTCP(c)
					c = nil
				}
			}
		})
	}
	all.Wait()
}

// awaitTCP waits until the proxy is up.
func awaitTCP(b *testing.B, addr netip.AddrPort) {
	b.Helper()
	for range 100 {
		if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr)); err == nil {
			abortTCP(c)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	require.FailNow(b, "the proxy does not answer")
}

// BenchmarkTCPLoad is 32 clients at once, as BenchmarkUDPLoad. A proxy that
// leaves TIME_WAIT behind runs out of ports after some 14,000 connections.
func BenchmarkTCPLoad(b *testing.B) {
	for _, load := range []struct {
		name    string
		connect bool
	}{{"request", false}, {"connect", true}} {
		for _, name := range peers() {
			b.Run(load.name+"/"+name, func(b *testing.B) {
				ln := listenTCP(b, "tcp4", "127.0.0.1")
				go acceptEcho(ln)
				p := startPeer(b, name, "tcp", addrPort(ln.Addr()))
				awaitTCP(b, p.addr)
				tcpLoad(b, p.addr, 32, 500, load.connect)
				b.ResetTimer()
				before := p.cpu(b)
				tcpLoad(b, p.addr, 32, b.N, load.connect)
				b.ReportMetric(float64((p.cpu(b)-before).Nanoseconds())/float64(b.N), "proxy-cpu-ns/op")
			})
		}
	}
}

// BenchmarkTCPBulkLoad is one client that sends 64 KiB at a time.
func BenchmarkTCPBulkLoad(b *testing.B) {
	for _, name := range peers() {
		b.Run(name, func(b *testing.B) {
			ln := listenTCP(b, "tcp4", "127.0.0.1")
			done := make(chan int64, 100)
			go func() {
				for {
					c, err := ln.AcceptTCP()
					if err != nil {
						return
					}
					go func() { drainTCP(c, done); _ = c.Close() }()
				}
			}()
			p := startPeer(b, name, "tcp", addrPort(ln.Addr()))
			awaitTCP(b, p.addr)
			<-done
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
			require.NoError(b, err)
			defer func() { _ = c.Close() }()
			chunk := make([]byte, 64<<10)
			b.SetBytes(int64(len(chunk)))
			b.ResetTimer()
			before := p.cpu(b)
			for range b.N {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			require.NoError(b, c.CloseWrite())
			require.Equal(b, int64(b.N)*int64(len(chunk)), <-done)
			b.ReportMetric(float64((p.cpu(b)-before).Nanoseconds())/float64(b.N), "proxy-cpu-ns/op")
		})
	}
}
