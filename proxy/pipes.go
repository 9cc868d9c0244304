package proxy

import (
	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how many bytes are asked for at a time, and room for them.
	pipeSize = 1 << 20
	// sparePipes is how many are kept that nobody needs.
	sparePipes = 8
)

// pipe is what splice(2) needs between two sockets.
type pipe struct {
	r, w int
	held int // bytes in it
}

// pipes lends pipes to directions that are bulk. It has the spare ones.
type pipes []*pipe

// borrow is an empty pipe, or nil where there is no file for one.
func (ps *pipes) borrow(files *Files) *pipe {
	if n := len(*ps); n > 0 {
		p := (*ps)[n-1]
		if !files.takePipe(p.w) {
			return nil
		}
		*ps = (*ps)[:n-1]
		return p
	}
	var ends [2]int
	if unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	p := &pipe{r: ends[0], w: ends[1]}
	if !files.takePipe(p.w) {
		p.close()
		return nil
	}
	// Where it is not allowed, the usual size does.
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	return p
}

// giveBack takes a pipe, which may have something in it.
func (ps *pipes) giveBack(p *pipe, files *Files) {
	files.give(filesOfPipe)
	if p.held > 0 || len(*ps) == sparePipes {
		p.close()
		return
	}
	*ps = append(*ps, p)
}

func (ps *pipes) close() {
	for _, p := range *ps {
		p.close()
	}
	*ps = nil
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
