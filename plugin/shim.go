package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/shim"
)

const (
	defaultShim   = "/run/portolan/docker.sock"
	defaultEngine = "/var/run/docker.sock"
)

type shimConfig struct {
	listen   string
	engine   string
	takeOver bool
	daemon   *string // its socket; "": whichever answers
}

func newShimCommand() *cobra.Command {
	var c shimConfig
	logs := newLogFlags()
	cmd := &cobra.Command{
		Use:   "shim",
		Short: "Serve the Docker API, with the ports of Portolan's networks in it",
		Long: `Serve the Docker API on a socket of its own: everything goes to the engine and
back, and what the engine does not know of a network driver's ports is filled
in. docker ps, docker port and docker inspect then show them, and so do compose,
traefik and whatever else asks:

  docker context create portolan --docker host=unix://` + defaultShim + `

It also tells the daemon which container an endpoint is of, for portolan ls.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := logs.logger(cmd.ErrOrStderr())
			return untilSignal(cmd.Context(), log, "stopping", stopWithin, func(ctx context.Context) error { return c.run(ctx, log) })
		},
	}
	c.daemon = addSocketFlag(cmd)
	f := cmd.Flags()
	c.addFlags(cmd)
	logs.add(f)
	return cmd
}

// addFlags adds those that install-shim passes on.
func (c *shimConfig) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.listen, "listen", defaultShim, "serve here; for root and the group docker, where there is one")
	f.StringVar(&c.engine, "engine", defaultEngine, "the engine's own socket")
	f.BoolVar(&c.takeOver, "take-over", false, "make networks without a driver, and ports published without a network, Portolan's")
}

func (c *shimConfig) run(ctx context.Context, log *slog.Logger) error {
	ln, err := c.open()
	if err != nil {
		return err
	}
	defer ln.Close() // the server has closed it, unless it never came so far
	s := shim.New(shim.Config{
		Engine:   c.engine,
		Daemon:   &shimDaemon{socket: *c.daemon},
		TakeOver: c.takeOver,
		Options:  driver.OptionNames(),
		Log:      log,
	})
	log.Info("portolan shim", "version", version, "pid", os.Getpid(), "listen", ln.Addr(), "engine", c.engine, "take-over", c.takeOver)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server{ln, withVersion(s.Handler()), finishWithin, log}.run(ctx) })
	group.Go(func() error { return s.Watch(ctx) })
	notifyReady(log)
	return group.Wait()
}

// open is the socket of systemd's where there is one, else one of our own.
func (c *shimConfig) open() (net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil || len(given) > 1 {
		return nil, fmt.Errorf("take the socket from systemd: %d of them: %w", len(given), err)
	}
	if len(given) == 1 {
		return given[0], nil
	}
	if sameSocket(c.listen, c.engine) {
		return nil, usageError{sameSocketError(c.listen)}
	}
	return listenSocket(c.listen, access{group: dockerGroup(), mode: 0o660, folder: 0o755})
}

func sameSocketError(path string) error {
	return fmt.Errorf("--listen and --engine are the same socket, %s; docs/shim.md says how the engine gets another one", path)
}

// sameSocket says whether two paths are one file, by whatever links.
func sameSocket(a, b string) bool {
	if a == b {
		return true
	}
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// dockerGroup is the ID of the group that may use the engine, -1 for none.
func dockerGroup() int {
	g, err := user.LookupGroup("docker")
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// withVersion also answers `portolan version`. The path is none of Docker's.
func withVersion(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/Portolan.Version" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(driver.VersionResponse{Version: version, API: driver.APIVersion, PID: os.Getpid()})
	})
}
