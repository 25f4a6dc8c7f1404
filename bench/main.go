// Bench measures irfs beside what does the same job, or a part of it, in one run
// on one machine, and prints a table of ratios.
//
//	go run ./bench [-quick] [-runs N] [-dir DIR]
//
// Each row runs its two commands in turn, A B A B …, and gives the median time of
// each and the median of the ratios of each pair. What is read is in
// memory, what is written is on the disk when the clock stops. With -quick the
// data is small: that shows that it works, and the times mean nothing. It needs root,
// /dev/fuse, and GNU's coreutils and tar; its data lies in DIR, by default
// where temporary files do.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A bench is one run of the program.
type bench struct {
	dir   string // where its data lies
	quick bool
	runs  int
	rows  []row
}

// A row is a line of the table.
type row struct {
	what, beside   string
	figure, target string
	detail         string
}

func main() {
	b := &bench{}
	flag.BoolVar(&b.quick, "quick", false, "small data: the times mean nothing")
	flag.IntVar(&b.runs, "runs", 5, "how often each pair is run")
	dir := flag.String("dir", os.TempDir(), "where the data lies")
	flag.Parse()
	if b.quick {
		b.runs = 1
	}
	if err := b.run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(dir string) (err error) {
	if b.dir, err = os.MkdirTemp(dir, "irfs-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.sh("go build -o %s/irfs ./cmd/irfs", b.dir); err != nil {
		return err
	}
	for _, part := range []func() error{b.importing, b.dropping, b.manySmall, b.memory} {
		if err := part(); err != nil {
			return err
		}
	}
	return b.print(os.Stdout)
}

func (b *bench) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| what\t| beside\t| figure\t| target\t| seen\t|")
	fmt.Fprintln(t, "| ---\t| ---\t| ---\t| ---\t| ---\t|")
	for _, r := range b.rows {
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t| %s\t|\n", r.what, r.beside, r.figure, r.target, r.detail)
	}
	return t.Flush()
}

// A task is one of two that are compared. prepare is not timed.
type task struct{ prepare, run func() error }

// compare runs two tasks in turn, and adds their row.
func (b *bench) compare(what, beside, target string, ours, theirs task) error {
	var a, c, ratios []float64
	for range b.runs {
		t, err := timed(ours)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		u, err := timed(theirs)
		if err != nil {
			return fmt.Errorf("%s: %w", beside, err)
		}
		a, c, ratios = append(a, t), append(c, u), append(ratios, t/u)
	}
	b.rows = append(b.rows, row{
		what, beside, fmt.Sprintf("%.2f ×", median(ratios)), target,
		fmt.Sprintf("%.2f s beside %.2f s; ratios %.2f to %.2f in %d runs", median(a), median(c), slices.Min(ratios), slices.Max(ratios), b.runs),
	})
	return nil
}

func timed(t task) (float64, error) {
	if err := t.prepare(); err != nil {
		return 0, err
	}
	start := time.Now()
	err := t.run()
	return time.Since(start).Seconds(), err
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return (list[len(list)/2] + list[(len(list)-1)/2]) / 2
}

// sh runs a line of shell.
func (b *bench) sh(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// fresh gives the path of a new, empty directory.
func (b *bench) fresh() string {
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		panic(err)
	}
	return dir
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// mounted runs do with a new registry mounted on mnt; pid is the mount's process.
func (b *bench) mounted(do func(registry, mnt string, pid int) error) error {
	registry, mnt := b.fresh(), b.fresh()
	if err := b.sh("%s/irfs mount %s %s", b.dir, registry, mnt); err != nil {
		return err
	}
	version, err := os.ReadFile(mnt + "/.irfs/version")
	pid := 0
	if _, after, ok := strings.Cut(string(version), "\npid "); ok {
		fmt.Sscan(after, &pid)
	}
	if err == nil {
		err = do(registry, mnt, pid)
	}
	return errors.Join(err, b.sh("%s/irfs umount %s", b.dir, mnt))
}
