package faults

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"irfs/layout/sample"
)

// TestReadersAgree words signed layouts in every way that no signature covers, and asks irfs for its word. If that is verified, in
// full, each reader that takes the layout must get the signed image: its config, read as everybody reads it, and its files. The
// readers are parsers (encoding/json, one that takes the first of two members, Python, jq; layers by their media type and by
// their first bytes) and tools (skopeo, umoci, podman). If irfs status --full --check passes, the same holds of everything in the layout.
//
// First each mutation is done alone, once; then some together, as rapid draws them. A third of the drawn cases have harmless mutations
// only, so that what is verified is more than nothing.
func TestReadersAgree(t *testing.T) {
	house.Need(t, "python3", "jq", "xz", "bzip2")
	for _, f := range []*filter{&pythonFilter, &jqFilter} {
		worked(t, f.start())
		t.Cleanup(f.stop)
	}
	c := &council{bases: readersBases(t), parsers: allParsers(), dir: newDir(t, "readers"), tally: map[string]*tally{}}
	t.Run("alone", c.alone)
	t.Run("together", c.together)
	t.Run("tools", c.tools)
}

// A council is the test: what to word, and who reads it.
type council struct {
	bases   []base
	parsers []taker
	dir     string

	mu    sync.Mutex
	tally map[string]*tally // by the kind of a mutation
	apps  int
}

type tally struct{ tried, verified int }

// A base is a signed layout that mutations begin with.
type base struct {
	name  string
	files sample.Files
	evil  digest.Digest
}

// readersBases makes them, signed by irfs.
func readersBases(t *testing.T) (list []base) {
	good := func(arch string, layer func(files ...string) sample.Layer) []sample.Layer {
		return []sample.Layer{layer("motd", "good "+arch+"\n"), layer("etc/", "", "etc/app", "app "+arch+"\n")}
	}
	for _, b := range []struct {
		name string
		make func(l *sample.Layout)
		evil func(files ...string) sample.Layer
	}{
		{"gzip", func(l *sample.Layout) {
			l.Tag(stable, l.Image(sample.Linux("amd64"), good("amd64", sample.Gzip)...))
		}, sample.Gzip},
		{"plain", func(l *sample.Layout) {
			l.Tag(stable, l.Image(sample.Linux("amd64"), good("amd64", sample.Plain)...))
		}, sample.Plain},
		{"zstd", func(l *sample.Layout) {
			l.Tag(stable, l.Image(sample.Linux("amd64"), good("amd64", sample.Zstd)...))
		}, sample.Zstd},
		{"Docker", func(l *sample.Layout) {
			l.Docker = true
			l.Tag(stable, l.Image(sample.Linux("amd64"), good("amd64", sample.Gzip)...))
		}, sample.Gzip},
		{"index", func(l *sample.Layout) {
			amd := l.Image(sample.Linux("amd64"), good("amd64", sample.Gzip)...)
			arm := l.Image(sample.Linux("arm64"), good("arm64", sample.Plain)...)
			l.Tag(stable, l.Index(amd, arm, l.Attestation(amd)))
		}, sample.Gzip},
		{"nested", func(l *sample.Layout) {
			amd := l.Image(sample.Linux("amd64"), good("amd64", sample.Plain)...)
			arm := l.Image(sample.Linux("arm64"), good("arm64", sample.Zstd)...)
			l.Tag(stable, l.Index(l.Index(amd), arm))
		}, sample.Plain},
		{"two tags", func(l *sample.Layout) {
			l.Tag("other", l.Image(sample.Linux("arm64"), good("arm64", sample.Gzip)...))
			l.Tag(stable, l.Image(sample.Linux("amd64"), good("amd64", sample.Gzip)...))
		}, sample.Gzip},
	} {
		dir := newDir(t, "base")
		l := sample.New()
		b.make(l)
		evil := l.Image(sample.Linux("amd64"), b.evil("motd", "EVIL\n"), b.evil("etc/", "", "etc/app", "EVIL\n"))
		worked(t, l.WriteDir(dir+"/app"))
		tags, err := whole(dir + "/app")
		worked(t, err)
		for tag := range tags {
			run(t, "irfs", append([]string{"sign-image", "-r", dir, "-a", "app", "-d", tag}, signing()...)...)
		}
		files, err := readFiles(dir + "/app")
		worked(t, err)
		list = append(list, base{b.name, files, evil.Digest})
	}
	return list
}

// readFiles reads the files of a layout.
func readFiles(dir string) (sample.Files, error) {
	files := sample.Files{}
	return files, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		files[strings.TrimPrefix(name, dir+"/")], err = os.ReadFile(name)
		return err
	})
}

// A trial is a wording, with what was done to get there.
type trial struct {
	*wording
	base  base
	done  []mutation
	files sample.Files

	ruined bool // a mutation broke off halfway

	registry string // a directory with app in it
	word     string // of irfs
	said     string // what it says beside the word
	passes   bool   // by irfs status --full --check: nothing in the registry is amiss
	remove   func()
}

func newTrial(b base) *trial { return &trial{wording: worded(b.files, b.evil), base: b} }

// mutate does a mutation, and reports whether there was a place for it. One that finds the ruins of those before it breaks off halfway, and
// then nothing is known of the outcome.
func (r *trial) mutate(m mutation, pick pick) (done bool) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case runtime.Error:
			m.name, m.mark, done = m.name+", in part", debatable, true
			r.ruined = true
		default:
			panic(p)
		}
		if done {
			r.done = append(r.done, m)
		}
	}()
	return m.do(r.wording, pick)
}

// judge writes the layout and asks irfs for its word.
func (c *council) judge(r *trial) error {
	c.mu.Lock()
	c.apps++
	r.registry = fmt.Sprintf("%s/%d", c.dir, c.apps)
	c.mu.Unlock()
	r.remove = func() { os.RemoveAll(r.registry) }
	r.files = r.wording.files()
	if err := r.files.WriteDir(r.registry + "/app"); err != nil {
		return err
	}
	out, err := try("irfs", "verify-image", "--full", "-r", r.registry, "-a", "app", "-d", stable, "-c", key("root-ca.pub"))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	r.word, r.said, _ = strings.Cut(strings.TrimSpace(out), "\n")
	if err != nil {
		r.said += err.Error()
	}
	if (r.word == "verified") != (err == nil) {
		return fmt.Errorf("irfs says %q and ends with %v", r.word, err)
	}
	_, err = try("irfs", "status", "--full", "--check", "-r", r.registry, "-c", key("root-ca.pub"))
	r.passes = err == nil
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range r.done {
		if c.tally[m.kind] == nil {
			c.tally[m.kind] = &tally{}
		}
		c.tally[m.kind].tried++
		if r.word == "verified" {
			c.tally[m.kind].verified++
		}
	}
	return nil
}

// hear asks each parser, and returns what one of them says against irfs.
func (c *council) hear(r *trial) string {
	for _, p := range c.parsers {
		if r.word == "verified" {
			images, err := p.images(r.files, stable)
			if why := r.disagrees(images); why != "" && err == nil { // else it does not take the layout
				return fmt.Sprintf("irfs says verified; %s gets %s", p.name, why)
			}
		}
		if r.passes {
			images, err := p.images(r.files, "")
			if why := r.disagrees(images); why != "" && err == nil {
				return fmt.Sprintf("irfs status --full --check finds nothing; %s gets %s", p.name, why)
			}
		}
	}
	return ""
}

// marks says what is wrong by the marks of what was done.
func (r *trial) marks() string {
	all := func(m mark) bool {
		return !slices.ContainsFunc(r.done, func(d mutation) bool { return d.mark != m })
	}
	switch {
	case all(harmless) && r.word != "verified":
		return fmt.Sprintf("irfs says %q of what is harmless", r.word)
	case len(r.done) == 1 && all(ambiguous) && r.word == "verified":
		return "irfs says verified of what DESIGN section 5 refuses"
	}
	return ""
}

// String is the trial for whoever has to find out why.
func (r *trial) String() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "base %q", r.base.name)
	for _, m := range r.done {
		fmt.Fprintf(&b, "\n  %s (%s)", m, m.mark)
	}
	fmt.Fprintf(&b, "\nirfs: %s (status --check passes: %t)\n%s\n", r.word, r.passes, r.said)
	r.wording.print(&b)
	return b.String()
}

// rapid prints draws with %#v.
func (m mutation) String() string   { return m.kind + ": " + m.name }
func (m mutation) GoString() string { return m.String() }
func (b base) GoString() string     { return b.name }

// alone does each mutation once by itself: on the first layout that has a place for it, and with everything on each.
func (c *council) alone(t *testing.T) {
	for i, m := range mutations {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(uint64(i), 0))
			tried := 0
			for j := range c.bases {
				for range 8 { // some picks lead nowhere
					r := newTrial(c.bases[(i+j)%len(c.bases)])
					if !r.mutate(m, random.IntN) || maps.EqualFunc(r.wording.files(), r.base.files, bytes.Equal) {
						continue
					}
					if r.ruined {
						t.Errorf("it breaks off halfway on a layout that is whole: %s", r)
					}
					worked(t, c.judge(r))
					for _, why := range []string{c.hear(r), r.marks()} {
						if why != "" {
							t.Errorf("%s\n%s", why, r)
							break
						}
					}
					r.remove()
					tried++
					break
				}
				if tried > 0 && !full {
					break
				}
			}
			if tried == 0 {
				t.Error("no layout has a place for it")
			}
		})
	}
}

// count is how many cases there are, for the parsers and for the tools.
func count(t *testing.T, few, many int) int {
	if text := os.Getenv("IRFS_READERS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("IRFS_READERS: %v", err)
		}
		return max(1, n*few/parserCases)
	}
	if full {
		return many
	}
	return few
}

const (
	parserCases, manyParserCases = 200, 5000
	toolCases, manyToolCases     = 20, 300
)

// draw makes a case of one to four mutations.
func (c *council) draw(t *rapid.T) *trial {
	r := newTrial(rapid.SampledFrom(c.bases).Draw(t, "base"))
	onlyHarmless := rapid.IntRange(0, 2).Draw(t, "only harmless") == 0
	for range rapid.IntRange(1, 4).Draw(t, "mutations") {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		if onlyHarmless {
			kind = rapid.SampledFrom(harmlessKinds).Draw(t, "harmless kind")
		}
		list := slices.DeleteFunc(slices.Clone(mutations), func(m mutation) bool { return m.kind != kind || onlyHarmless && m.mark != harmless })
		m := rapid.SampledFrom(list).Draw(t, "mutation")
		r.mutate(m, func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") })
	}
	return r
}

var kinds, harmlessKinds = func() (all, some []string) {
	for _, m := range mutations {
		if !slices.Contains(all, m.kind) {
			all = append(all, m.kind)
		}
		if m.mark == harmless && !slices.Contains(some, m.kind) {
			some = append(some, m.kind)
		}
	}
	return all, some
}()

// withChecks sets how many cases rapid draws, until the test ends.
func withChecks(t *testing.T, n int) {
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(n), "rapid.shrinktime": "5s", "rapid.nofailfile": "true"} {
		f := flag.Lookup(name)
		old := f.Value.String()
		worked(t, f.Value.Set(value))
		t.Cleanup(func() { f.Value.Set(old) })
	}
}

// together draws several mutations a case.
func (c *council) together(t *testing.T) {
	n := count(t, parserCases, manyParserCases)
	withChecks(t, n)
	clear(c.tally)
	cases, verified := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		r := c.draw(t)
		if err := c.judge(r); err != nil {
			t.Fatal(err)
		}
		defer r.remove()
		cases++
		if r.word == "verified" {
			verified++
		}
		for _, why := range []string{c.hear(r), r.marks()} {
			if why != "" {
				t.Fatalf("%s\n%s", why, r)
			}
		}
	})
	t.Logf("%d of %d cases are verified; of each kind were tried: %s", verified, cases, c.tallies())
	if verified*10 < cases {
		t.Errorf("only %d of %d cases are verified: the rest says nothing", verified, cases)
	}
}

func (c *council) tallies() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(c.tally)) {
		fmt.Fprintf(&b, " %s %d (%d verified)", k, c.tally[k].tried, c.tally[k].verified)
	}
	return strings.TrimSpace(b.String())
}
