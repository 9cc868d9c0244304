package watch

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// newGeneration is the type of the message that ends every transaction.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// Attributes of it that x/sys does not have.
const (
	genPID  = 2 // NFTA_GEN_PROC_PID: of the thread, as the host counts
	genName = 3 // NFTA_GEN_PROC_NAME
)

// onlyGenerations keeps all that a transaction changed out of the socket, so
// that one of 65,535 elements is one message. Loads are big-endian, headers are
// not.
func onlyGenerations() []bpf.Instruction {
	typ := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, newGeneration))
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2}, // nlmsg_type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(typ), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	}
}

// heardRules is a message of nftables.
func (w *Watcher) heardRules(c *Change, m netlink.Message) {
	if m.Header.Type != newGeneration {
		return
	}
	c.Rules = true
	if by := changer(m.Data); by != "" {
		c.RulesBy = by
	}
}

// changer names the process whose transaction it was, but for this one.
func changer(data []byte) string {
	const nfgenmsg = 4
	if len(data) < nfgenmsg {
		return ""
	}
	ad, err := netlink.NewAttributeDecoder(data[nfgenmsg:])
	if err != nil {
		return ""
	}
	ad.ByteOrder = binary.BigEndian
	var pid uint32
	var name string
	for ad.Next() {
		switch ad.Type() {
		case genPID:
			pid = ad.Uint32()
		case genName:
			name = ad.String()
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", pid)); name == "" || err == nil {
		return ""
	}
	return fmt.Sprintf("%s (pid %d)", name, pid)
}
