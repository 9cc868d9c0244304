package driver

import (
	"encoding/binary"
	"fmt"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/rtnetlink"
	"github.com/portolan/portolan/internal/store"
)

// portMode is what bridge(8) calls the flags of a bridge port, as far as ours
// depend on them.
type portMode struct {
	hairpin, isolated bool
}

// wantedMode: a container reaches its own published port by way of its bridge
// port. An isolated port cannot be reached by way of published ports either,
// where br_netfilter translates what is bridged: ports of a closed network are,
// where rules do not keep them apart (portmap.PortsApart).
func wantedMode(n store.Network, apart func() bool) portMode {
	return portMode{hairpin: true, isolated: n.NoICC && !apart()}
}

// portModes are the modes of all bridge ports of this host, by interface index.
// netlink.LinkGetProtinfo lists them all for one.
func portModes() (map[int]portMode, error) {
	msgs, err := rtnetlink.Dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	modes := map[int]portMode{}
	for _, m := range msgs {
		index, mode, err := parsePortMode(m)
		if err != nil {
			return nil, fmt.Errorf("list bridge ports: %w", err)
		}
		modes[index] = mode
	}
	return modes, nil
}

func parsePortMode(msg []byte) (index int, mode portMode, err error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return 0, mode, fmt.Errorf("message of %d bytes", len(msg))
	}
	index = int(int32(binary.NativeEndian.Uint32(msg[4:])))
	ad, err := mdl.NewAttributeDecoder(msg[unix.SizeofIfInfomsg:])
	if err != nil {
		return index, mode, err
	}
	for ad.Next() {
		if ad.Type() != unix.IFLA_PROTINFO {
			continue
		}
		ad.Nested(func(flags *mdl.AttributeDecoder) error {
			for flags.Next() {
				switch flags.Type() {
				case nl.IFLA_BRPORT_MODE:
					mode.hairpin = isOn(flags.Bytes())
				case nl.IFLA_BRPORT_ISOLATED:
					mode.isolated = isOn(flags.Bytes())
				}
			}
			return nil
		})
	}
	return index, mode, ad.Err()
}

func isOn(flag []byte) bool { return len(flag) == 1 && flag[0] != 0 }
