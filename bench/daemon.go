package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

// driverName is the name by which an engine knows the daemon.
const driverName = "portolan"

// daemon is a Portolan daemon as systemd would run it, in a namespace.
type daemon struct {
	socket  string
	mapper  string
	program string
	in      enginetest.Namespace
	state   string // folder
	log     string // path
	process *enginetest.Process
}

// startDaemon starts a daemon, which ends with the session. dir is for its log
// and its state, sockets the folder where the engine looks for plugins, if there
// is one.
func (c config) startDaemon(s *session, in enginetest.Namespace, mapper, dir, sockets string) (*daemon, error) {
	d := &daemon{
		mapper: mapper, in: in, state: filepath.Join(dir, "portolan"),
		socket:  filepath.Join(sockets, driverName+".sock"),
		program: filepath.Join(c.bin, "portolan"),
		log:     filepath.Join(dir, "portolan.log"),
	}
	s.Cleanup(func() {
		if d.process != nil {
			if s.Failed() {
				s.Logf("the daemon said last:\n%s", d.process.Tail(20))
			}
			_ = d.stop()
		}
		_ = os.Remove(d.socket)
	})
	return d, d.start()
}

// start starts the process. It logs its calls, a line each, whence callTimes.
func (d *daemon) start() error {
	var err error
	d.process, err = enginetest.Start("portolan", d.log, d.in.Command(d.program, "daemon",
		"--socket", d.socket, "--state-dir", d.state, "--mapper", d.mapper,
		"--log-level", "debug", "--log-format", "json"))
	if err != nil {
		return err
	}
	return listening(d.process, d.socket)
}

func (d *daemon) stop() error { return d.process.Stop(syscall.SIGTERM, 10*time.Second) }

// restart makes a new process: nothing that the old one did shows in its
// memory.
func (d *daemon) restart() error {
	if err := d.stop(); err != nil {
		return err
	}
	return d.start()
}

// logged is how long the log is.
func (d *daemon) logged() (int64, error) {
	fi, err := os.Stat(d.log)
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// callTimes reads from the log how long each call has taken within the daemon,
// by the method's name, from an offset of the log.
func (d *daemon) callTimes(offset int64) (map[string][]time.Duration, error) {
	f, err := os.Open(d.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return readCallTimes(f)
}

func readCallTimes(r io.Reader) (map[string][]time.Duration, error) {
	times := map[string][]time.Duration{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var line struct {
			Call string        `json:"call"`
			Took time.Duration `json:"took"`
		}
		// What is no JSON is of the runtime, not of the log.
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Call != "" {
			method := line.Call[strings.LastIndexByte(line.Call, '.')+1:]
			times[method] = append(times[method], line.Took)
		}
	}
	return times, lines.Err()
}
