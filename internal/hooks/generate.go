package hooks

// Debian's clang, llvm and libbpf-dev make the object files; the build needs
// neither, as they are committed. The folders are where Debian keeps asm/types.h.
//
//go:generate go tool bpf2go -go-package hooks -target bpfel,bpfeb -cflags "-O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" -type range_key -type range -type address -type answer_key -type answer programs hooks.bpf.c
