package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// microPackages have benchmarks of their own.
var microPackages = []string{"./proxy", "./internal/store"}

// packageFigures are what packages measure of themselves.
type packageFigures struct {
	plain
	micro []microbenchmark
}

func measurePackages(ctx context.Context, _ *session, _ config) (figures, error) {
	micro, err := microbenchmarks(ctx)
	return &packageFigures{micro: micro}, err
}

func (*packageFigures) goals() []goal { return nil }

// microbenchmark is a line of go test -bench.
type microbenchmark struct{ name, figures string }

// microbenchmarks runs go test, so that it needs the repository around it.
func microbenchmarks(ctx context.Context) ([]microbenchmark, error) {
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-benchtime", "0.3s"}, microPackages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return parseMicro(out), nil
}

// benchLine is "BenchmarkName-2   100   4608788 ns/op   298 B/op …"; -2 is the
// number of processors.
var benchLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

func parseMicro(out []byte) (found []microbenchmark) {
	pkg := ""
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "pkg: "); ok {
			pkg = name[strings.LastIndexByte(name, '/')+1:]
		}
		if m := benchLine.FindStringSubmatch(lines.Text()); m != nil {
			figures := strings.Split(m[2], "\t")
			for i, f := range figures {
				figures[i] = strings.TrimSpace(f)
			}
			found = append(found, microbenchmark{pkg + " " + m[1], strings.Join(figures, ", ")})
		}
	}
	return found
}

func (f *packageFigures) tables() string {
	t := table{head: []string{"benchmark", "figures"}}
	for _, m := range f.micro {
		t.add("`"+m.name+"`", m.figures)
	}
	return section("Benchmarks of packages (`go test -bench`, one run each)", t)
}
