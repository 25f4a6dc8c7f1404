package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"

	irfs "irfs/fs"
	"irfs/layout"
)

// interruptible gives a context that ends with Ctrl-C.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	interrupts = ctx
	return ctx, stop
}

// interrupts is the context of the command that runs: it ends with a signal.
var interrupts = context.Background()

// unlessInterrupted is for what may wait in the kernel, as an open of a FIFO waits for a writer.
func unlessInterrupted[T any](do func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := do()
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-interrupts.Done():
		var none T
		return none, interrupts.Err()
	}
}

func runImport(c *command, args []string) error {
	flags := newFlags(c)
	var archive archiveFlags
	archive.add(flags)
	if err := c.parse(flags, args, 1, 1, "registry"); err != nil {
		return err
	}
	archive.file = flags.Arg(0)
	if err := archive.check(c); err != nil {
		return err
	}
	if err := archive.open(); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	staged, err := archive.stage(ctx)
	if err != nil {
		return err
	}
	defer staged.Discard()
	return archive.publish(ctx, staged)
}

// archiveFlags are the flags that say what becomes of an archive.
type archiveFlags struct {
	registry, app, file string
	onExist             string
	keepAll, compress   bool
	mode                layout.OnExist

	reg     *layout.Registry
	archive *os.File
}

func (a *archiveFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&a.registry, "registry", "r", "", "the registry's `directory`")
	flags.StringVarP(&a.app, "app", "a", "", "the `app` to make (default: the file's name without .tar and the like)")
	flags.StringVar(&a.onExist, "on-exist", "add", "`how` to deal with an app that is there: add new tags to it, merge (tags that are there move), or fail")
	flags.BoolVar(&a.keepAll, "keep-all", false, "keep platforms that are listed and not there, attestations, and Docker's media types")
	flags.BoolVar(&a.compress, "compress", false, "compress by gzip the layers of what podman save, or docker save before 25, made")
}

// check is about the words, once file is known.
func (a *archiveFlags) check(c *command) (err error) {
	if a.file == "-" && a.app == "" {
		return &usageError{c, "-a APP is missing: standard input has no name to take"}
	}
	if a.app == "" {
		a.app = irfs.AppOf(filepath.Base(a.file))
	}
	if a.mode, err = layout.ParseOnExist(a.onExist); err != nil {
		return &usageError{c, "--on-exist " + err.Error()}
	}
	return nil
}

// open opens the registry and the archive, "-" being standard input. This comes
// before signals are caught, for to open a FIFO may wait for ever.
func (a *archiveFlags) open() (err error) {
	if a.reg, err = layout.Open(a.registry); err != nil {
		return err
	}
	if err := a.reg.CheckName(a.app); err != nil {
		return err
	}
	a.archive = os.Stdin
	if a.file != "-" {
		a.archive, err = unlessInterrupted(func() (*os.File, error) { return os.Open(a.file) })
	}
	return err
}

// stage takes in the archive.
func (a *archiveFlags) stage(ctx context.Context) (*layout.Staged, error) {
	defer a.archive.Close()
	var size int64
	if st, err := a.archive.Stat(); err == nil && st.Mode().IsRegular() {
		size = st.Size()
	}
	archive, stop := newProgress(&interruptibleReader{ctx: ctx, r: a.archive}, size)
	defer stop()
	staged, err := a.reg.Stage(ctx, archive, layout.Intake{
		Owner: layout.Owner{UID: os.Geteuid(), GID: os.Getegid()},
		App:   a.app, KeepAll: a.keepAll, Compress: a.compress,
	})
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; nothing was imported")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.file, err)
	}
	return staged, nil
}

func (a *archiveFlags) publish(ctx context.Context, staged *layout.Staged) error {
	list, err := staged.Publish(ctx, a.app, a.mode)
	if err != nil {
		return err
	}
	for _, what := range staged.Dropped {
		say("dropped %s", what)
	}
	var lines []byte
	for _, i := range list {
		lines = fmt.Appendf(lines, "%s\t%s\t%s\n", irfs.Field(i.App), irfs.Field(i.Tag), i.Digest)
	}
	_, err = os.Stdout.Write(lines)
	return err
}

// An interruptibleReader ends with its context, also where a read waits for a
// terminal, or for a pipe that nobody writes to.
type interruptibleReader struct {
	ctx   context.Context
	r     io.Reader
	reads chan read
	rest  []byte
	err   error
}

type read struct {
	data []byte
	err  error
}

func (r *interruptibleReader) Read(p []byte) (int, error) {
	if r.reads == nil {
		r.reads = make(chan read)
		go func() { // it may wait for ever, and ends with the process
			bufs := [2][]byte{make([]byte, 256<<10), make([]byte, 256<<10)}
			for i := 0; ; i++ {
				n, err := r.r.Read(bufs[i%2])
				r.reads <- read{bufs[i%2][:n], err}
				if err != nil {
					return
				}
			}
		}()
	}
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		select {
		case next := <-r.reads:
			r.rest, r.err = next.data, next.err
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
