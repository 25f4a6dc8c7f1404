package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/kballard/go-shellquote"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	irfs "irfs/fs"
	"irfs/layout"
)

// readyFD is the descriptor on which a mount in the background tells the
// process that started it that the mount is there.
const readyFD = 3

const readyEnv = "IRFS_READY_FD"

func runMount(c *command, args []string) error {
	flags := newFlags(c)
	var m mountFlags
	m.add(flags)
	if err := c.parse(flags, args, 2, 2); err != nil {
		return err
	}
	m.signs = flags.Changed("sign-imports")
	if err := m.parseOptions(c); err != nil {
		return err
	}
	if !m.foreground && os.Getenv(readyEnv) == "" {
		return background(args)
	}
	if err := m.readSigner(c); err != nil {
		return err
	}
	return m.serve(flags.Arg(0), flags.Arg(1))
}

type mountFlags struct {
	cas         []string
	certificate string
	signImports string // flags of sign-image
	signs       bool   // whether there are any
	foreground  bool
	words       []string // of -o
	writers     []string // lists of those who are trusted with that
	options     irfs.Options
}

func (m *mountFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&m.cas, "ca-pub", "c", nil, "a root CA's public `key` (or a directory of *.pub; may be repeated)")
	flags.StringVarP(&m.certificate, "vendor-pub-signature", "s", "", "the `certificate` for who signs without naming one")
	flags.StringVar(&m.signImports, "sign-imports", "", "sign what is copied into import/, with these `flags` of sign-image: '-v VENDOR.PRV -s VENDOR.PUB.SIG -c ROOT-CA.PUB', or '-v VENDOR.PRV -x ROOT-CA.PRV'")
	flags.BoolVarP(&m.foreground, "foreground", "f", false, "stay in the foreground")
	flags.StringSliceVarP(&m.words, "options", "o", nil, "mount `options`: ca_pub= vendor_pub_signature= ro allow_other nonempty writers=USER|@GROUP[:...] (who may write the registry, and is trusted to leave times) on_exist=add|merge|fail sign_imports=")
}

// parseOptions reads what came with -o. mount(8) and mount.fuse3 add words of
// their own, which mean nothing here.
func (m *mountFlags) parseOptions(c *command) error {
	for _, word := range m.words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "ca_pub":
			m.cas = append(m.cas, value)
		case "vendor_pub_signature":
			m.certificate = value
		case "on_exist":
			var err error
			if m.options.OnExist, err = layout.ParseOnExist(value); err != nil {
				return &usageError{c, "-o on_exist=" + err.Error()}
			}
		case "writers":
			m.writers = append(m.writers, value)
		case "ro":
			m.options.ReadOnly = true
		case "allow_other":
			m.options.AllowOther = true
		case "nonempty":
			m.options.NonEmpty = true
		case "noexec", "noatime", "nodiratime", "sync", "dirsync":
			if name == "noexec" {
				m.options.Kernel = append(m.options.Kernel, name)
			}
		case "rw", "dev", "suid", "nodev", "nosuid", "exec", "atime", "relatime", "async", "defaults",
			"auto", "noauto", "user", "nouser", "users", "_netdev", "nofail", "default_permissions", "":
		case "sign_imports":
			m.signImports, m.signs = value, true
		case "enforce", "trust":
			return &usageError{c, fmt.Sprintf("-o %s: this version of irfs does not have it yet", name)}
		default:
			if strings.HasPrefix(name, "x-") || name == "comment" {
				continue
			}
			return &usageError{c, fmt.Sprintf("-o %s: no such mount option", name)}
		}
	}
	return nil
}

// readSigner reads the keys of --sign-imports, as they are now.
func (m *mountFlags) readSigner(c *command) error {
	if !m.signs {
		return nil
	}
	refuse := func(err error) error { return &usageError{c, "--sign-imports: " + err.Error()} }
	words, err := shellquote.Split(m.signImports)
	if err != nil {
		return refuse(err)
	}
	flags := newFlags(c)
	flags.SetOutput(io.Discard)
	var keys signerFlags
	keys.add(flags)
	if err := flags.Parse(words); errors.Is(err, pflag.ErrHelp) {
		return refuse(errors.New("the flags are -v -s -c -x, see irfs help sign-image"))
	} else if err != nil {
		return refuse(err)
	}
	if flags.NArg() > 0 {
		return refuse(fmt.Errorf("unexpected argument %q; quote a path with blanks in it", flags.Arg(0)))
	}
	if keys.vendor == "" {
		return refuse(errors.New("-v, the vendor's private key, is missing"))
	}
	if keys.caPrv == "" && len(keys.caPubs) == 0 { // the mount's own serve
		keys.caPubs = m.cas
	}
	if keys.caPrv == "" && keys.certificate == "" {
		keys.certificate = m.certificate
	}
	if err := keys.check(c); err != nil {
		return refuse(err)
	}
	m.options.SignImports, err = keys.signer()
	return err
}

// background starts the same command as a process of its own, and returns
// when the mount is there or has failed.
func background(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command(self, append([]string{"mount"}, args...)...)
	child.Stderr = os.Stderr
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d", readyEnv, readyFD))
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return err
	}
	if answer, _ := io.ReadAll(r); string(answer) == "ready" {
		return child.Process.Release()
	}
	err = child.Wait()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() > 0 {
		return exit(ended.ExitCode()) // it has said why
	}
	return fmt.Errorf("the mount ended before it was ready (%v)", err)
}

// detach lets go of everything that the process has from the one that started it,
// and tells that one that the mount is ready.
func detach() error {
	if os.Getenv(readyEnv) == "" {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	ready := os.NewFile(readyFD, "ready")
	_, err = io.WriteString(ready, "ready")
	return errors.Join(err, ready.Close())
}

func (m *mountFlags) serve(registry, dir string) error {
	trust, err := readTrust(m.cas)
	if err != nil {
		return err
	}
	reg, err := layout.Open(registry)
	if err != nil {
		return &irfs.Hint{Err: err, Text: "a registry is a directory; an empty one will do: mkdir " + registry}
	}
	for _, list := range m.writers {
		if err := reg.AllowWriters(list); err != nil {
			return fmt.Errorf("-o writers=%s: %w", list, err)
		}
	}
	m.options.Version = version()
	if m.certificate != "" {
		if m.options.Certificate, err = readSmall(m.certificate); err != nil {
			return err
		}
		m.options.CertificateFrom = m.certificate
	}
	if len(trust.CAs()) == 0 {
		warn("no root CA (-c ROOT-CA.PUB): signed images will be unknown, never verified")
	}
	for _, name := range irfs.HiddenApps(reg) {
		warn("app %s is hidden: a mount has a directory of that name", name)
	}
	// Before the mount is there, so that no signal is missed.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	mount, err := irfs.NewTree(reg, trust).Mount(dir, m.options)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(tune())
	if err := detach(); err != nil {
		mount.Detach()
		return err
	}
	done := make(chan struct{})
	go func() {
		mount.Wait()
		close(done)
	}()
	return untilUnmounted(mount, signals, done)
}

// tune adapts Go's runtime to what a mount does, where the environment does not say how. The mount is there. What it
// gives has to be kept: it counts as memory in use, and takes none, for nothing is written to it.
func tune() (unused []byte) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)       // a mount keeps much and makes little anew: a quarter less memory for little work
		unused = make([]byte, 3<<20) // so the collector of a small mount does not run for each import
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Above that the collector runs as often as it has to: windows of decompressors (layout.MaxWindows, MaxLayerWindows) and large indexes take much for a moment.
		debug.SetMemoryLimit(640 << 20)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// A thread that waits for a request keeps its place among those that run, until that is taken from it some ten
		// microseconds later. go-fuse has one more of them than there were places, but at least 3 and at most 17.
		places := runtime.GOMAXPROCS(0)
		runtime.GOMAXPROCS(places + min(max(places, 2)+1, 17))
	}
	return unused
}

// untilUnmounted serves until the mount is gone. The first signal unmounts, if
// nobody uses the mount; the second takes it out of sight all the same.
func untilUnmounted(mount *irfs.Mount, signals <-chan os.Signal, done <-chan struct{}) error {
	for first := true; ; first = false {
		select {
		case <-done:
			return nil
		case <-signals:
		}
		err := mount.Unmount()
		if err != nil && !first {
			err = mount.Detach()
		}
		if err == nil {
			<-done
			return nil
		}
		select {
		case <-done: // somebody else was faster
			return nil
		default:
			warn("%v; the mount stays until it is unused, or until a second signal", err)
		}
	}
}
