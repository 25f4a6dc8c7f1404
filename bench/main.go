// Bench measures irfs beside what does the same job, or a part of it, in one run
// on one machine, and prints a table of ratios.
//
//	go run ./bench [-quick] [-runs N] [-dir DIR] [-only PART,…] [-o FILE]
//
// Each row runs its two commands in turn, A B A B …, and gives the median time of
// each and the median of the ratios of each pair. What is read is in
// memory, what is written is on the disk when the clock stops. With -quick the
// data is small: that shows that it works, and the times mean nothing. A run of
// everything also puts the table into docs/BENCHMARKS.md (or FILE), before what is written there
// about it, and beside it a plot of what grows with a registry. It needs root,
// /dev/fuse, bindfs, and GNU's coreutils and tar; its data lies in DIR, by default
// where temporary files do.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	only  string
	rows  []row

	keys    *keys
	configs []signed // those that were signed so far
	series  map[string][]point
}

// maxReaders is how many read at once, in any row.
const maxReaders = 4

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
	flag.StringVar(&b.only, "only", "", "only the parts of these names")
	dir := flag.String("dir", os.TempDir(), "where the data lies")
	file := flag.String("o", "", "write the table to this file, and the plot beside it (default docs/BENCHMARKS.md, after a run of everything)")
	flag.Parse()
	if b.quick {
		b.runs = 1
	}
	if *file == "" && !b.quick && b.only == "" {
		*file = "docs/BENCHMARKS.md"
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + maxReaders) // a reader that waits in the kernel keeps its place for a while
	if err := b.run(*dir, *file); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(dir, file string) (err error) {
	if b.dir, err = os.MkdirTemp(dir, "irfs-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.sh("CGO_ENABLED=0 go build -o %s/irfs ./cmd/irfs", b.dir); err != nil {
		return err
	}
	if err := b.makeKeys(); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		rows int
		do   func() error
	}{
		{"status", 2, b.status}, {"sweeps", 3, b.sweeps}, {"stampede", 1, b.stampede}, {"blobs", 4, b.blobs}, {"full", 1, b.verifyFull},
		{"command", 1, b.command}, {"sign", 1, b.signing}, {"mount", 3, b.mounting}, {"large", 4, b.oneLargeApp}, {"growth", 1, b.growth},
		{"import", 1, b.importing}, {"drop", 1, b.dropping}, {"small", 1, b.manySmall}, {"memory", b.sized(4, 2), b.memory},
	} {
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), part.name) {
			continue
		}
		before := len(b.rows)
		if err := part.do(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		if made := len(b.rows) - before; made != part.rows {
			return fmt.Errorf("%s: %d rows, and not %d", part.name, made, part.rows)
		}
		if !b.quick {
			fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), part.name)
			for _, r := range b.rows[before:] {
				fmt.Fprintf(os.Stderr, "  %s: %s (%s)\n", r.what, r.figure, r.detail)
			}
		}
	}
	if err := b.print(os.Stdout); err != nil || file == "" {
		return err
	}
	return b.write(file)
}

// write writes the report, and the plot beside it. The sections that the file has stay.
func (b *bench) write(name string) error {
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var text, svg bytes.Buffer
	fmt.Fprintf(&text, "# Benchmarks\n\nMade by `go run ./bench %s`, each row %d times, on %s with %d cores (%s).\n"+
		"Every figure is a ratio, or a difference, to what is in the second column, run in turn with it; times are there\n"+
		"for their order of magnitude. How each row is made is said in `bench/`.\n\n", strings.Join(os.Args[1:], " "), b.runs, kernel(), runtime.NumCPU(), runtime.Version())
	if err := b.print(&text); err != nil {
		return err
	}
	if b.series != nil {
		picture := strings.TrimSuffix(name, filepath.Ext(name)) + ".svg"
		fmt.Fprintf(&text, "\nWhat grows with a registry, and what does not:\n\n![cost by number of images](%s)\n", filepath.Base(picture))
		if err := errors.Join(plot(&svg, b.series), os.WriteFile(picture, svg.Bytes(), 0o644)); err != nil {
			return err
		}
	}
	if _, sections, ok := bytes.Cut(old, []byte("\n## ")); ok {
		fmt.Fprintf(&text, "\n## %s", sections)
	}
	return os.WriteFile(name, text.Bytes(), 0o644)
}

func kernel() string {
	out, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(out))
}

// sized is a number, or a small one for -quick.
func (b *bench) sized(all, quick int) int {
	if b.quick {
		return quick
	}
	return all
}

func (b *bench) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| what\t| beside\t| figure\t| target\t| seen\t|")
	fmt.Fprintln(t, "| ---\t| ---\t| ---\t| ---\t| ---\t|")
	for _, r := range b.rows {
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t| %s\t|\n", r.what, strings.ReplaceAll(r.beside, "|", `\|`), r.figure, r.target, r.detail)
	}
	return t.Flush()
}

// A task is one of two that are compared. prepare is not timed.
type task struct{ prepare, run func() error }

// pairs runs two tasks in turn, and gives the times.
func (b *bench) pairs(runs int, what, beside string, ours, theirs task) (a, c []float64, err error) {
	for range runs {
		t, err := timed(ours)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		u, err := timed(theirs)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", beside, err)
		}
		a, c = append(a, t), append(c, u)
	}
	return a, c, nil
}

// compare runs two tasks in turn, and adds their row: how many times as long ours takes.
func (b *bench) compare(what, beside, target string, ours, theirs task) error {
	return b.compareTimes(b.runs, what, beside, target, ours, theirs)
}

func (b *bench) compareTimes(runs int, what, beside, target string, ours, theirs task) error {
	a, c, err := b.pairs(runs, what, beside, ours, theirs)
	if err != nil {
		return err
	}
	b.add(what, beside, target, a, c, func(a, c float64) float64 { return a / c })
	return nil
}

// rate is compare for what has to be fast: how many times as often ours is done in a time.
func (b *bench) rate(what, beside, target string, ours, theirs task) error {
	a, c, err := b.pairs(b.runs, what, beside, ours, theirs)
	if err != nil {
		return err
	}
	b.add(what, beside, target, a, c, func(a, c float64) float64 { return c / a })
	return nil
}

func (b *bench) add(what, beside, target string, a, c []float64, ratio func(a, c float64) float64) {
	var ratios []float64
	for i := range a {
		ratios = append(ratios, ratio(a[i], c[i]))
	}
	b.rows = append(b.rows, row{
		what, beside, fmt.Sprintf("%.3g ×", median(ratios)), target,
		fmt.Sprintf("%.3g s beside %.3g s; ratios %.3g to %.3g in %d runs", median(a), median(c), slices.Min(ratios), slices.Max(ratios), len(a)),
	})
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
	pid, err := pidOf(mnt)
	if err == nil {
		err = do(registry, mnt, pid)
	}
	return errors.Join(err, b.sh("%s/irfs umount %s", b.dir, mnt))
}

// pidOf gives the process that serves a mount.
func pidOf(mnt string) (pid int, err error) {
	version, err := os.ReadFile(mnt + "/.irfs/version")
	if _, after, ok := strings.Cut(string(version), "\npid "); ok {
		_, err = fmt.Sscan(after, &pid)
	}
	return pid, err
}

// irfs runs the program.
func (b *bench) irfs(args ...string) error {
	out, err := exec.Command(b.path("irfs"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("irfs %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
