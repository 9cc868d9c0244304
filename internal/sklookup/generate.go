package sklookup

// See package hooks.
//
//go:generate go tool bpf2go -go-package sklookup -target bpfel,bpfeb -cflags "-O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" -type port_key -type address programs sklookup.bpf.c
