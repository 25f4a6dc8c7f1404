package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	irfs "irfs/fs"
)

// This file holds what every subcommand shares. The rules:
//
//   - Results go to standard output, everything else to standard error, with the
//     program's name before it, in lower case, without a full stop.
//   - Names of apps, tags and files may hold any bytes. Each message is one line (say), and
//     a name is one field of a line (irfs.Field).
//   - An error says what was wrong with what. What there is to do about it
//     goes on a line of its own, as a hint.
//   - Exit codes are those of the table below, and no others.

// Exit codes. 3 to 7 are the status words (exitCodes).
const (
	exitFailed = 1
	exitUsage  = 2
)

// A command is one subcommand.
type command struct {
	name    string
	args    string // for the usage line
	summary string
	run     func(c *command, args []string) error
}

// commands gives all of them, in the order in which help shows them.
func commands() []*command {
	return []*command{
		{"mount", "[-c ROOT-CA.PUB]... [-s VENDOR.PUB.SIG] [--sign-imports FLAGS] [-f] [-o OPTIONS] REGISTRY MNT", "show a registry as a filesystem", runMount},
		{"umount", "[-l] MNT", "unmount it", runUmount},
		{"gen-key", "-o VENDOR.PRV", "make a private key", runGenKey},
		{"extract-public", "-i VENDOR.PRV -o VENDOR.PUB", "write the public half of a private key", runExtractPublic},
		{"sign", "-k KEY.PRV -f FILE -s FILE.SIG", "make a detached signature of a file", runSign},
		{"verify", "-k KEY.PUB -f FILE -s FILE.SIG", "check a detached signature", runVerify},
		{"sign-image", "-r REGISTRY -a APP -d REFERENCE -v VENDOR.PRV (-s VENDOR.PUB.SIG -c ROOT-CA.PUB | -x ROOT-CA.PRV)", "sign an image, or all images of an index", runSignImage},
		{"import", "-r REGISTRY [-a APP] [--on-exist add|merge|fail] [--keep-all] [--compress] FILE|-", "take an image archive in, without signing", runImport},
		{"extract-sign-image", "-r REGISTRY -f FILE|- [-a APP] [-d REFERENCE] [--on-exist add|merge|fail] [--keep-all] [--compress] -v VENDOR.PRV (-s VENDOR.PUB.SIG -c ROOT-CA.PUB | -x ROOT-CA.PRV)", "take an image archive in, signed", runExtractSignImage},
		{"verify-image", "-r REGISTRY -a APP -d REFERENCE -c ROOT-CA.PUB [--full] [--json]", "check an image's chain of trust", runVerifyImage},
		{"status", "[-r REGISTRY | MNT] [-c ROOT-CA.PUB]... [--full] [--json] [--only WORD,...] [--check]", "list every image and its status; with --check, fail unless all of it is verified", runStatus},
		{"ls", "-r REGISTRY [-c ROOT-CA.PUB]... [PATH]", "list what a mount would show, a name on each line (control characters in it as %0A)", runLs},
		{"cat", "-r REGISTRY [-c ROOT-CA.PUB]... PATH...", "print what a mount would show", runCat},
		{"gc", "-r REGISTRY [-a APP] [--grace 14d] [--dry-run]", "remove blobs that nothing refers to", runGC},
		{"demo", "", "walk through the main job with a sample registry", runDemo},
		{"version", "", "print the version", runVersion},
		{"help", "[COMMAND]", "print this text, or the flags of a command", runHelp},
		{"completion", "bash|zsh|fish", "print a completion script for a shell", runCompletion},
	}
}

func main() {
	os.Exit(exitCode(run(os.Args[1:])))
}

func run(args []string) error {
	if len(args) == 0 {
		printUsage(os.Stderr)
		return exit(exitUsage)
	}
	switch args[0] {
	case "-h", "--help":
		args[0] = "help"
	case "--version":
		args[0] = "version"
	}
	if c := find(args[0]); c != nil {
		return c.run(c, args[1:])
	}
	// irfs REGISTRY MNT [-o OPTIONS], as mount(8) and fstab call it.
	if st, err := os.Stat(args[0]); strings.HasPrefix(args[0], "-") || strings.Contains(args[0], "/") || err == nil && st.IsDir() {
		c := find("mount")
		return c.run(c, args)
	}
	return &usageError{nil, fmt.Sprintf("unknown command %q; see irfs help", args[0])}
}

func find(name string) *command {
	all := commands()
	i := slices.IndexFunc(all, func(c *command) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return all[i]
}

// exit is an error with nothing to print: only the code counts.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// withCode is an error with an exit code of its own.
type withCode struct {
	code int
	error
}

func (e *withCode) Unwrap() error { return e.error }

// A usageError is about the words of the command line.
type usageError struct {
	of   *command // whose usage line is printed, or nil
	text string
}

func (e *usageError) Error() string { return e.text }

// exitCode prints the error, if there is one, and gives the code to end with.
func exitCode(err error) int {
	var code exit
	var usage *usageError
	var coded *withCode
	var hint *irfs.Hint
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	for _, one := range apart(err) {
		if one == context.Canceled { // a signal
			one = errors.New("interrupted")
		}
		say("%v", one)
	}
	if errors.As(err, &hint) {
		say("hint: %s", hint.Text)
	}
	switch {
	case errors.As(err, &usage):
		if usage.of != nil {
			fmt.Fprintf(os.Stderr, "usage: irfs %s\n", strings.TrimSpace(usage.of.name+" "+usage.of.args))
		}
		return exitUsage
	case errors.As(err, &coded):
		return coded.code
	}
	return exitFailed
}

// apart gives the errors that were joined by [errors.Join], each by itself.
func apart(err error) (list []error) {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || fmt.Sprint(errors.Join(joined.Unwrap()...)) != err.Error() {
		return []error{err}
	}
	for _, one := range joined.Unwrap() {
		list = append(list, apart(one)...)
	}
	return list
}

// say prints a message to standard error, as one line whatever names there are in it.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "irfs: %s\n", irfs.Line(fmt.Sprintf(format, args...)))
}

func warn(format string, args ...any) { say("warning: "+format, args...) }

// parse parses the flags of a command. positional is how many words it takes
// besides, at least and at most; required names flags that must be given.
func (c *command) parse(flags *pflag.FlagSet, args []string, least, most int, required ...string) error {
	flags.SortFlags = false
	flags.Usage = func() {}
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		c.help(os.Stdout, flags)
		return exit(0)
	}
	if err != nil {
		return &usageError{c, err.Error()}
	}
	for _, name := range required {
		if !flags.Changed(name) {
			f := flags.Lookup(name)
			return &usageError{c, fmt.Sprintf("-%s (--%s) is missing: %s", f.Shorthand, name, strings.ReplaceAll(f.Usage, "`", ""))}
		}
	}
	switch n := flags.NArg(); {
	case n < least:
		return &usageError{c, fmt.Sprintf("too few arguments for %s", c.name)}
	case n > most:
		return &usageError{c, fmt.Sprintf("unexpected argument %q", flags.Arg(most))}
	}
	return nil
}

func (c *command) help(w io.Writer, flags *pflag.FlagSet) {
	fmt.Fprintf(w, "usage: irfs %s\n\n%s\n", strings.TrimSpace(c.name+" "+c.args), c.summary)
	if flags != nil && flags.HasFlags() {
		fmt.Fprintf(w, "\n%s", flags.FlagUsages())
	}
}

func newFlags(c *command) *pflag.FlagSet {
	return pflag.NewFlagSet(c.name, pflag.ContinueOnError)
}

func runHelp(c *command, args []string) error {
	if len(args) == 0 || len(args) == 1 && slices.Contains([]string{"help", "-h", "--help"}, args[0]) {
		printUsage(os.Stdout)
		return nil
	}
	if err := c.parse(newFlags(c), args, 0, 1); err != nil {
		return err
	}
	of := find(args[0])
	if of == nil {
		return &usageError{c, fmt.Sprintf("no help on %q", args[0])}
	}
	return of.run(of, []string{"--help"})
}

func printUsage(w io.Writer) {
	fmt.Fprint(w, `irfs shows an Image Registry as a filesystem: trust is a file to read, signing a write.

usage: irfs COMMAND ...
       irfs REGISTRY MNT [-o OPTIONS]

`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-19s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, `
Exit codes: 0 done, 1 failed, 2 usage; of a status: 3 unsigned, 4 untrusted, 5 invalid, 6 corrupt, 7 unknown.

Example:
    $ irfs mount -c root-ca.pub /srv/registry /mnt
    $ echo /keys/vendor.prv > /mnt/nginx/tags/stable/sign
    $ cat /mnt/nginx/tags/stable/verify-full
    verified
    $ irfs umount /mnt
`)
}

func runVersion(c *command, args []string) error {
	if err := c.parse(newFlags(c), args, 0, 0); err != nil {
		return err
	}
	fmt.Println("irfs", version())
	return nil
}

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return info.Main.Version + " " + s.Value[:12]
		}
	}
	return info.Main.Version
}
