package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	irfs "irfs/fs"
	"irfs/layout/sample"
)

// A step of the demo is a shell command and what it must print. The directory
// that it runs in holds registry/, redis.tar and an empty mnt/. An empty command
// leaves the step out.
type step struct {
	say     string // printed before it
	mounted string // the command, with registry/ mounted on mnt/
	without string // the same where nothing can be mounted
	want    string // a regular expression for all of the output
}

func both(say, command, want string) step { return step{say, command, command, want} }

const (
	mountCommand  = "irfs mount -c root-ca.pub registry mnt"
	umountCommand = "irfs umount mnt"
	signed        = `signed sha256:\w+ -> sha256:\w+`
)

var keySteps = []step{
	both("Two parties, with a key pair each: the root CA and a vendor.", "irfs gen-key -o root-ca.prv", ""),
	both("", "irfs extract-public -i root-ca.prv -o root-ca.pub", ""),
	both("", "irfs gen-key -o vendor.prv", ""),
	both("", "irfs extract-public -i vendor.prv -o vendor.pub", ""),
	both("The CA certifies the vendor's key.", "irfs sign -k root-ca.prv -f vendor.pub -s vendor.pub.sig", ""),
}

var jobSteps = []step{
	{"A registry with two apps, nginx and library/alpine. Trust is a file to read.",
		"ls mnt mnt/nginx/tags/stable", "irfs ls -r registry && irfs ls -r registry nginx/tags/stable", `.*\bnginx\b.*\bverify\b.*`},
	{"", "cat mnt/nginx/tags/stable/verify", "irfs cat -r registry -c root-ca.pub nginx/tags/stable/verify", "unsigned"},
	{"Signing is a write. The certificate is found beside the key.", "echo vendor.prv > mnt/nginx/tags/stable/sign", "", ""},
	{"", "head -n 1 mnt/nginx/tags/stable/sign", "", signed + "; certificate vendor.pub.sig"},
	{"Signing.", "", "irfs sign-image -r registry -a nginx -d stable -v vendor.prv -s vendor.pub.sig -c root-ca.pub", signed},
	{"", "cat mnt/nginx/tags/stable/verify mnt/nginx/tags/stable/verify-full",
		"irfs cat -r registry -c root-ca.pub nginx/tags/stable/verify nginx/tags/stable/verify-full", "verified\nverified"},
	{"", "grep -qx verified mnt/nginx/tags/stable/verify-full && echo may be deployed",
		"irfs cat -r registry -c root-ca.pub nginx/tags/stable/verify-full | grep -qx verified && echo may be deployed", "may be deployed"},
	{"The parts of the chain of trust, as files.", "",
		"for f in vendor.pub.sig vendor.pub signature config.json; do irfs cat -r registry nginx/tags/stable/$f > mnt/$f; done", ""},
	{"OpenSSL checks the chain with no irfs code in it: the CA's signature of the vendor's key, then the vendor's of the config.",
		"cd mnt/nginx/tags/stable && openssl dgst -sha384 -verify ../../../../root-ca.pub -keyform DER -signature vendor.pub.sig vendor.pub",
		"cd mnt && openssl dgst -sha384 -verify ../root-ca.pub -keyform DER -signature vendor.pub.sig vendor.pub", "Verified OK"},
	{"", "cd mnt/nginx/tags/stable && openssl dgst -sha384 -verify vendor.pub -keyform DER -signature signature config.json",
		"cd mnt && openssl dgst -sha384 -verify vendor.pub -keyform DER -signature signature config.json", "Verified OK"},
	{"An app for two platforms is signed in one step. Its word is the worst of its images'.",
		"ls mnt/library/alpine/tags/3.20/platforms", "irfs ls -r registry library/alpine/tags/3.20/platforms", "linux-amd64\nlinux-arm64"},
	{"", "echo '-v vendor.prv -s vendor.pub.sig -c root-ca.pub' > mnt/library/alpine/tags/3.20/sign", "", ""},
	{"", "", "irfs sign-image -r registry -a library/alpine -d 3.20 -v vendor.prv -s vendor.pub.sig -c root-ca.pub", signed + "\n" + signed},
	{"", "cd mnt/library/alpine/tags/3.20 && cat verify-full platforms/*/verify-full",
		"irfs cat -r registry -c root-ca.pub library/alpine/tags/3.20/verify-full library/alpine/tags/3.20/platforms/linux-amd64/verify-full", "verified(\nverified)+"},
	{"Importing is a copy.", "cp redis.tar mnt/import/", "", ""},
	{"Importing.", "", "irfs import -r registry redis.tar", `redis\t7\tsha256:\w+`},
	{"", "cat mnt/redis/tags/7/verify", "irfs cat -r registry -c root-ca.pub redis/tags/7/verify", "unsigned"},
	{"", "irfs status mnt | cut -f 1-4", "irfs status -r registry -c root-ca.pub | cut -f 1-4",
		"verified\tlibrary/alpine\t3.20\tlinux/amd64\nverified\tlibrary/alpine\t3.20\tlinux/arm64\nverified\tnginx\tstable\tlinux/amd64\nunsigned\tredis\t7\tlinux/amd64"},
	both("Somebody changes a layer in the registry. No signature is touched; only verify-full, which reads the layers, can tell.",
		"sed -i s/Welcome/Hacked!/ registry/nginx/blobs/sha256/LAYER", ""),
	{"", "cat mnt/nginx/tags/stable/verify mnt/nginx/tags/stable/verify-full",
		"irfs cat -r registry -c root-ca.pub nginx/tags/stable/verify nginx/tags/stable/verify-full", "verified\ncorrupt"},
	{"", "tail -n 1 mnt/nginx/tags/stable/reason",
		"irfs verify-image -r registry -a nginx -d stable -c root-ca.pub --full || test $? = 6", ".*layer 3 of 3: .*"},
	{"", "grep -qx verified mnt/nginx/tags/stable/verify-full || echo not deployed",
		"irfs cat -r registry -c root-ca.pub nginx/tags/stable/verify-full | grep -qx verified || echo not deployed", "not deployed"},
	{"What was done through this mount:", "cut -f 3- mnt/.irfs/log", "", "sign\tnginx/.*\nsign\tlibrary/.*\nimport\timport/redis.tar\timported redis 7 .*"},
}

// cannotMount finds what `irfs mount` says where a mount is not to be had: an
// ordinary container, a user without fusermount3.
var cannotMount = regexp.MustCompile(`(?im)^.*(no /dev/fuse|fusermount3 is not there|operation not permitted|permission denied|no such device).*$`)

// A demo runs in a temporary directory, of which nothing is left at its end.
type demo struct {
	ctx    context.Context // ends with Ctrl-C
	dir    string
	layer  string   // the name of the blob to tamper with
	daemon *os.File // a pidfd of the mount's process
}

func runDemo(c *command, args []string) (err error) {
	if err := c.parse(newFlags(c), args, 0, 0); err != nil {
		return err
	}
	// The mount's process, whose parent ends when it is ready, becomes a child
	// of this one, which sees it to its end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	// With SIGPIPE caught, `irfs demo | head` cleans up too.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	temp, err := filepath.Abs(os.TempDir())
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(temp, "irfs-demo-")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, dir: dir}
	err = d.walk()
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err = errors.Join(err, d.cleanUp()); err == nil {
		fmt.Print("\n# Everything was as it should be, and nothing of it is left.\n")
	}
	return err
}

func (d *demo) walk() error {
	if err := d.prepare(); err != nil {
		return err
	}
	for _, s := range keySteps {
		if err := d.step(s.say, s.mounted, s.want); err != nil {
			return err
		}
	}
	mounted, err := d.mount()
	if err != nil {
		return err
	}
	for _, s := range jobSteps {
		command := s.mounted
		if !mounted {
			command = s.without
		}
		if command == "" {
			continue
		}
		if _, err := exec.LookPath("openssl"); err != nil && strings.Contains(command, "openssl") {
			fmt.Print("\n# openssl is not installed, so its check of the signatures is left out.\n")
			continue
		}
		if err := d.step(s.say, strings.ReplaceAll(command, "LAYER", d.layer), s.want); err != nil {
			return err
		}
	}
	if mounted {
		return d.step("", umountCommand, "")
	}
	return nil
}

// prepare puts into the directory what the steps begin with.
func (d *demo) prepare() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	page := sample.Plain("usr/share/nginx/html/index.html", "Welcome to nginx!\n")
	d.layer = page.DiffID().Encoded() // not compressed, so its own
	nginx := sample.New()
	nginx.Tag("stable", nginx.Image(sample.Linux("amd64"), sample.Gzip("bin/", "", "bin/sh", "#!\n"), sample.Zstd("etc/nginx.conf", "user www;\n"), page))
	alpine := sample.New()
	amd := alpine.Image(sample.Linux("amd64"), sample.Gzip("etc/alpine-release", "3.20.0\n"))
	arm := alpine.Image(sample.Linux("arm64"), sample.Gzip("etc/alpine-release", "3.20.0\n", "etc/arch", "arm\n"))
	alpine.Tag("3.20", alpine.Index(amd, arm, alpine.Attestation(amd)))
	redis := sample.New()
	redis.Tag("7", redis.Image(sample.Linux("amd64"), sample.Gzip("etc/redis.conf", "port 6379\n")))
	var archive bytes.Buffer
	return errors.Join(
		os.Mkdir(filepath.Join(d.dir, "bin"), 0o755),
		os.Mkdir(filepath.Join(d.dir, "mnt"), 0o755),
		os.Symlink(self, filepath.Join(d.dir, "bin/irfs")),
		nginx.WriteDir(filepath.Join(d.dir, "registry/nginx")),
		alpine.WriteDir(filepath.Join(d.dir, "registry/library/alpine")),
		redis.WriteTar(&archive),
		os.WriteFile(filepath.Join(d.dir, "redis.tar"), archive.Bytes(), 0o644),
	)
}

// mount mounts the registry, or says that this cannot be done here.
func (d *demo) mount() (bool, error) {
	out, err := d.run(mountCommand)
	if why := cannotMount.FindString(out); why != "" && err != nil {
		fmt.Printf("\n# There is no mount to be had here (%s), so irfs cat, ls, sign-image and import do the same job.\n", strings.TrimPrefix(why, "irfs: "))
		return false, nil
	}
	version, readErr := os.ReadFile(filepath.Join(d.dir, "mnt/.irfs/version"))
	if _, after, ok := bytes.Cut(version, []byte("\npid ")); ok {
		var pid int
		fmt.Sscan(string(after), &pid)
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			d.daemon = os.NewFile(uintptr(fd), "pidfd")
		}
	}
	err = d.check("Mount it, as one who trusts that CA.", mountCommand, "", out, err)
	if err == nil && d.daemon == nil {
		err = errors.Join(errors.New("mnt/.irfs/version does not name the mount's process"), readErr)
	}
	return true, err
}

func (d *demo) step(say, command, want string) error {
	out, err := d.run(command)
	return d.check(say, command, want, out, err)
}

// check prints a step, and gives an error if it is not as it should be.
func (d *demo) check(say, command, want, out string, err error) error {
	if say != "" {
		fmt.Printf("\n# %s\n", say)
	}
	fmt.Printf("$ %s\n%s", command, out)
	if err == nil {
		err = d.ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("the demo stops at `%s`: %w", command, err)
	}
	if !regexp.MustCompile(`^(?s:` + want + `)\n?$`).MatchString(out) {
		return fmt.Errorf("the demo stops at `%s`: it did not print what it should (%q)", command, want)
	}
	return nil
}

// run runs a command, out of the reach of the terminal's Ctrl-C: the step under
// way is finished first, so that it is known what there is to clean up.
func (d *demo) run(command string) (string, error) {
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+filepath.Join(d.dir, "bin")+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return nil }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil && cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what did not end in time
	}
	return string(out), err
}

// cleanUp unmounts what is still mounted, waits for the mount's process to
// end, and removes the directory.
func (d *demo) cleanUp() error {
	irfs.Unmount(filepath.Join(d.dir, "mnt"), true) // if the last step did not
	var err error
	if d.daemon != nil {
		defer d.daemon.Close()
		poll := []unix.PollFd{{Fd: int32(d.daemon.Fd()), Events: unix.POLLIN}}
		for n := 0; n == 0; {
			n, err = unix.Poll(poll, 10_000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n == 0 {
				err = errors.New("the mount's process did not end, and was killed")
				unix.PidfdSendSignal(int(d.daemon.Fd()), unix.SIGKILL, nil, 0)
				break
			}
		}
		unix.Waitid(unix.P_PIDFD, int(d.daemon.Fd()), nil, unix.WEXITED, nil)
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
