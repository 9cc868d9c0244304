package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/vishvananda/netlink"
)

// floor is a network driver that makes a bridge for each network and a veth
// pair for each container, and does nothing about ports. It keeps no record and
// reads no more of a request than it needs.
type floor struct{}

// serveFloor serves until ctx ends.
func serveFloor(ctx context.Context, socket string) error {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: floor{}}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP answers the remote driver protocol.
func (f floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := f.call(r)
	_, _ = io.Copy(io.Discard, r.Body) // or the connection cannot be used again
	if err != nil {
		answer = map[string]string{"Err": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

type none struct{}

func (f floor) call(r *http.Request) (any, error) {
	switch r.URL.Path {
	case "/Plugin.Activate":
		return map[string][]string{"Implements": {"NetworkDriver"}}, nil
	case "/NetworkDriver.GetCapabilities":
		return map[string]string{"Scope": "local", "ConnectivityScope": "local"}, nil
	case "/NetworkDriver.CreateNetwork":
		return none{}, f.createNetwork(r.Body)
	case "/NetworkDriver.DeleteNetwork":
		return none{}, f.deleteNetwork(r.Body)
	case "/NetworkDriver.Join":
		return f.join(r.Body)
	case "/NetworkDriver.Leave":
		return none{}, f.leave(r.Body)
	case "/NetworkDriver.EndpointOperInfo":
		return map[string]any{"Value": none{}}, nil
	case "/NetworkDriver.CreateEndpoint", "/NetworkDriver.DeleteEndpoint",
		"/NetworkDriver.ProgramExternalConnectivity", "/NetworkDriver.RevokeExternalConnectivity":
		return none{}, nil
	}
	return nil, fmt.Errorf("%s is not a method of this plugin", r.URL.Path)
}

func (floor) createNetwork(body io.Reader) error {
	var req struct {
		NetworkID string
		IPv4Data  []struct{ Gateway string }
	}
	if err := json.NewDecoder(body).Decode(&req); err != nil {
		return err
	}
	la := netlink.NewLinkAttrs()
	la.Name = floorBridge(req.NetworkID)
	br := &netlink.Bridge{LinkAttrs: la}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge %s: %w", la.Name, err)
	}
	for _, d := range req.IPv4Data {
		addr, err := netlink.ParseAddr(d.Gateway)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(br, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", addr, la.Name, err)
		}
	}
	return netlink.LinkSetUp(br)
}

func (floor) deleteNetwork(body io.Reader) error {
	network, _, err := readIDs(body)
	if err != nil {
		return err
	}
	return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: floorBridge(network)}})
}

func (floor) join(body io.Reader) (any, error) {
	network, endpoint, err := readIDs(body)
	if err != nil {
		return nil, err
	}
	br, err := netlink.LinkByName(floorBridge(network))
	if err != nil {
		return nil, err
	}
	addrs, err := netlink.AddrList(br, netlink.FAMILY_V4)
	if err != nil || len(addrs) == 0 {
		return nil, fmt.Errorf("no address on %s: %w", br.Attrs().Name, err)
	}
	la := netlink.NewLinkAttrs()
	v := netlink.NewVeth(la)
	v.Name, v.PeerName = floorVeth(endpoint)
	v.MasterIndex = br.Attrs().Index
	if err := netlink.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("make veth pair %s: %w", v.Name, err)
	}
	return map[string]any{
		"InterfaceName": map[string]string{"SrcName": v.PeerName, "DstPrefix": "eth"},
		"Gateway":       addrs[0].IP.String(),
	}, netlink.LinkSetUp(v)
}

func (floor) leave(body io.Reader) error {
	_, endpoint, err := readIDs(body)
	if err != nil {
		return err
	}
	port, _ := floorVeth(endpoint)
	l, err := netlink.LinkByName(port)
	if err != nil {
		return nil // gone with its container
	}
	return netlink.LinkDel(l)
}

func floorBridge(network string) string { return "fl-" + network[:12] }

func floorVeth(endpoint string) (port, inside string) {
	return "fp" + endpoint[:10], "fc" + endpoint[:10]
}

// readIDs reads a request only as far as its IDs, which every request begins
// with: a megabyte of ports may follow.
func readIDs(body io.Reader) (network, endpoint string, err error) {
	dec := json.NewDecoder(body)
	if _, err := dec.Token(); err != nil {
		return "", "", err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return "", "", err
		}
		switch key {
		case "NetworkID":
			err = dec.Decode(&network)
		case "EndpointID":
			err = dec.Decode(&endpoint)
		default:
			return network, endpoint, nil
		}
		if err != nil {
			return "", "", err
		}
	}
	return network, endpoint, nil
}
