package portmap_test

import (
	"testing"

	"github.com/portolan/portolan/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }
