package sklookup

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/bpfhost"
	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/systemd"
)

// What this binary is, besides the tests: another process that binds, and one
// that holds ports until it is killed.
const (
	asBinder = "PORTOLAN_SKLOOKUPTEST_BIND"
	asHolder = "PORTOLAN_SKLOOKUPTEST_HOLD"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asBinder) != "":
		binder()
	case os.Getenv(asHolder) != "":
		os.Exit(hold(os.Getenv(asHolder)))
	default:
		netnstest.Main(m)
	}
}

// open attaches for a test; it says so where this host cannot.
func open(t testing.TB) *Table {
	t.Helper()
	table, err := Open(Config{Cgroup: testCgroup(t)})
	_, ours := errors.AsType[*ebpf.VerifierError](err)
	require.False(t, ours, "a fault of the programs: %+v", err)
	if err != nil {
		t.Skip("this host cannot attach the programs, which Open says: ", err)
	}
	t.Cleanup(func() {
		require.NoError(t, table.Close())
		assert.Empty(t, reservedPorts(t))
	})
	return table
}

// testCgroup is the root of the hierarchy: where the host has it, or mounted for
// the test.
func testCgroup(t testing.TB) string {
	t.Helper()
	if dir, err := bpfhost.FindRoot(); err == nil {
		return dir
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("portolan-test", dir, "cgroup2", 0, ""), "mount cgroup2")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func reservedPorts(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + ReservedPorts)
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// process is another process of this network namespace, which binds sockets and
// keeps the last.
type process struct {
	in  *bufio.Writer
	out *bufio.Reader
}

func newProcess(t testing.TB) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asBinder+"=1")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return &process{bufio.NewWriter(in), bufio.NewReader(out)}
}

// bind is "" if the process could bind an address, and what it was told if not.
func (p *process) bind(t testing.TB, proto uint8, addr string, options ...string) string {
	t.Helper()
	_, err := fmt.Fprintln(p.in, proto, addr, strings.Join(options, ","))
	require.NoError(t, err)
	require.NoError(t, p.in.Flush())
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func binder() {
	kept := -1
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		f := append(strings.Fields(in.Text()), "")
		proto, _ := strconv.Atoi(f[0])
		if kept >= 0 {
			_ = unix.Close(kept)
		}
		var err error
		if kept, err = bindSocket(proto, netip.MustParseAddrPort(f[1]), f[2]); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println()
		}
	}
}

func bindSocket(proto int, addr netip.AddrPort, options string) (int, error) {
	family, typ := unix.AF_INET6, unix.SOCK_STREAM
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	if proto == unix.IPPROTO_UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for name, option := range map[string]int{"reuseaddr": unix.SO_REUSEADDR, "reuseport": unix.SO_REUSEPORT} {
		if strings.Contains(options, name) {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1)
		}
	}
	if family == unix.AF_INET6 && strings.Contains(options, "only6") {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err = unix.Bind(fd, sa); err == nil && typ == unix.SOCK_STREAM && !strings.Contains(options, "deaf") {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// hold holds ports, says which programs do, and waits to be killed. Where there is a
// manager they are kept by it, with sockets.
func hold(cgroup string) int {
	cfg := Config{Cgroup: cgroup, Record: func(added string) error {
		_, err := fmt.Println("added", added)
		return err
	}}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		cfg.Keep = systemd.NewNamed(nil)
	}
	table, err := Open(cfg)
	if err == nil {
		err = table.Reserve(unix.IPPROTO_UDP, netip.Addr{}, 20000, 29999)
	}
	if err == nil && cfg.Keep != nil {
		err = holdSteered(table)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ids, err := programIDs(table)
	fmt.Println("programs", strings.Trim(fmt.Sprint(ids), "[]"), err)
	time.Sleep(time.Minute)
	return 1
}

func holdSteered(table *Table) error {
	if err := table.Reserve(unix.IPPROTO_TCP, netip.Addr{}, 20000, 29999); err != nil {
		return err
	}
	if _, _, err := table.Sockets(); err != nil {
		return err
	}
	return errors.Join(table.Steer(unix.IPPROTO_TCP, netip.Addr{}, 20000, 29999, true, true, true),
		table.Steer(unix.IPPROTO_UDP, netip.Addr{}, 20000, 29999, true, true, true))
}

func programIDs(table *Table) (ids []ebpf.ProgramID, err error) {
	for _, p := range table.programs() {
		info, e := p.Info()
		if e != nil {
			return ids, e
		}
		id, _ := info.ID()
		ids = append(ids, id)
	}
	return ids, nil
}

// killHolder has another process hold ports, kills it, and returns its programs and
// what it has recorded.
func killHolder(t *testing.T, env ...string) (ids []ebpf.ProgramID, added string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asHolder+"="+testCgroup(t))
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for lines := bufio.NewScanner(out); ids == nil && lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "added":
			added = rest
		case "programs":
			var a, b, c ebpf.ProgramID
			_, err := fmt.Sscanf(rest, "%d %d %d <nil>", &a, &b, &c)
			require.NoError(t, err, rest)
			ids = []ebpf.ProgramID{a, b, c}
		default:
			require.Fail(t, lines.Text())
		}
	}
	require.Len(t, ids, 3)
	require.Equal(t, "20000-29999", added)
	require.Equal(t, added, reservedPorts(t))
	require.Contains(t, newProcess(t).bind(t, unix.IPPROTO_UDP, "0.0.0.0:20000"), "in use")
	return ids, added
}

// requireUnloaded waits until nobody has programs any more.
func requireUnloaded(t *testing.T, ids []ebpf.ProgramID) {
	t.Helper()
	for _, id := range ids {
		require.Eventually(t, func() bool { return !isLoaded(id) }, patience, 10*time.Millisecond, "program %d is still loaded", id)
	}
}

func isLoaded(id ebpf.ProgramID) bool {
	p, err := ebpf.NewProgramFromID(id)
	if err == nil {
		p.Close()
	}
	return err == nil
}

// What is held is free again when the process was killed, but for the sysctl,
// which what it recorded takes back.
func TestKilled(t *testing.T) {
	open(t) // or skip
	ids, added := killHolder(t)
	requireUnloaded(t, ids)
	require.Empty(t, newProcess(t).bind(t, unix.IPPROTO_UDP, "0.0.0.0:20000"))
	require.Equal(t, added, reservedPorts(t))
	require.NoError(t, Unreserve("/proc/sys/net", added))
	require.Empty(t, reservedPorts(t))
	require.NoError(t, Unreserve("/proc/sys/net", added), "again")
}

// udpAnswer reads one datagram and where it was sent to.
func udpAnswer(c *net.UDPConn, wait time.Duration) (data string, client, local netip.AddrPort, err error) {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return "", client, local, err
	}
	buf, oob := make([]byte, 64), make([]byte, 256)
	n, on, _, client, err := c.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		return "", client, local, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return "", client, local, err
	}
	for _, m := range msgs {
		sa, err := unix.ParseOrigDstAddr(&m)
		if err != nil {
			continue
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			local = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			local = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		}
	}
	return string(buf[:n]), client, local, nil
}
