package fs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/kballard/go-shellquote"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"

	"irfs/layout"
	"irfs/sign"
)

// MaxCommand is how many bytes one write to a control file may have.
const MaxCommand = 4096

const usage = `usage: write the path of the vendor's private key, or the key itself, or: -v VENDOR.PRV (-s VENDOR.PUB.SIG [-c ROOT-CA.PUB] | -x ROOT-CA.PRV)
`

// A command is what was written to a control file.
type command struct {
	key                []byte // the key itself, or nil
	vendor             string // the path of the key
	certificate, caPrv string
	caPubs             []string
}

func badCommand(format string, args ...any) error {
	return &fault{errCommand, fmt.Sprintf(format, args...)}
}

// parseCommand tells by the first bytes what was written: a key (DER or PEM),
// flags of sign-image, or else the key's path.
func parseCommand(data []byte) (*command, error) {
	switch {
	case len(data) > MaxCommand:
		return nil, badCommand("%d bytes written, over the limit of %d for one command", len(data), MaxCommand)
	case isDER(data), bytes.HasPrefix(data, []byte("-----BEGIN ")):
		return &command{key: data}, nil
	case bytes.HasPrefix(data, []byte("-")):
		return parseFlags(string(data))
	}
	name := strings.TrimSuffix(string(data), "\n")
	if name == "" {
		return nil, badCommand("nothing was written but a line end; write the path of the vendor's private key")
	}
	if err := checkPath(name); err != nil {
		return nil, err
	}
	return &command{vendor: name}, nil
}

// checkPath refuses what is no path, and may be a key in some disguise, which must not be echoed as a path.
func checkPath(name string) error {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return badCommand("not a path: it has a line end or another control character in it, or is no text")
	}
	if len(name) >= 60 && name[0] != '/' && strings.Trim(name, base64) == "" {
		return badCommand("this looks like a part of a key in base64; write a PEM file whole, with cat, or its path")
	}
	return nil
}

// base64 is what a line of a PEM file is made of. A shell's echo of a whole one
// arrives line by line, and no line of a key may be taken for a path, for
// paths are shown in the log.
const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n"

// isDER: a sequence of 128 bytes or more, or a shorter one that begins as
// private keys do, with a version number (SEC 1, C.4; RFC 5958).
func isDER(data []byte) bool {
	return len(data) > 2 && data[0] == 0x30 && (data[1]&0xf0 == 0x80 || data[2] == 0x02)
}

func parseFlags(text string) (*command, error) {
	words, err := shellquote.Split(text)
	if err != nil {
		return nil, badCommand("a quote in the flags is not closed")
	}
	c := &command{}
	flags := pflag.NewFlagSet("sign", pflag.ContinueOnError)
	flags.SetOutput(new(bytes.Buffer))
	flags.StringVarP(&c.vendor, "vendor-prv", "v", "", "")
	flags.StringVarP(&c.certificate, "vendor-pub-signature", "s", "", "")
	flags.StringArrayVarP(&c.caPubs, "ca-pub", "c", nil, "")
	flags.StringVarP(&c.caPrv, "ca-prv", "x", "", "")
	if err := flags.Parse(words); err != nil {
		return nil, badCommand("a flag that is not allowed here, or one without its value; the flags are -v -s -c -x")
	}
	switch {
	case flags.NArg() > 0:
		return nil, badCommand("a word that is no flag; quote a path with blanks in it")
	case c.vendor == "":
		return nil, badCommand("-v, the vendor's private key, is missing")
	case c.caPrv != "" && (c.certificate != "" || len(c.caPubs) > 0):
		return nil, badCommand("-x makes the certificate itself; -s and -c do not go with it")
	}
	for _, name := range append([]string{c.vendor, c.certificate, c.caPrv}, c.caPubs...) {
		if err := checkPath(name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// signer reads, as the caller, what a command names. from tells where the
// certificate came from if the command did not say.
func (t *Tree) signer(c *command, read func(string) ([]byte, error), list func(string) ([]string, bool, error)) (s *sign.Signer, from string, err error) {
	text := c.key
	if text == nil {
		if text, err = read(c.vendor); err != nil {
			return nil, "", unnamed(c.vendor, "the vendor's private key", err)
		}
	}
	vendor, err := sign.ParsePrivateKey(text)
	if err != nil {
		return nil, "", named(c.vendor, err)
	}
	if c.caPrv != "" {
		text, err := read(c.caPrv)
		if err != nil {
			return nil, "", unnamed(c.caPrv, "the root CA's private key", err)
		}
		ca, err := sign.ParsePrivateKey(text)
		if err != nil {
			return nil, "", named(c.caPrv, err)
		}
		s, err = sign.NewCertifyingSigner(vendor, ca)
		return s, "", err
	}
	trust := t.Verifier.Trust
	if len(c.caPubs) > 0 {
		var cas []*sign.PublicKey
		names, err := expand(c.caPubs, list)
		if err != nil {
			return nil, "", err
		}
		for _, name := range names {
			text, err := read(name)
			if err != nil {
				return nil, "", unnamed(name, "a root CA", err)
			}
			ca, err := sign.ParsePublicKey(text)
			if err != nil {
				return nil, "", named(name, err)
			}
			cas = append(cas, ca)
		}
		trust = sign.NewTrust(cas...)
	}
	if len(trust.CAs()) == 0 {
		return nil, "", &fault{errNoKey, "no root CA: mount with -c ROOT-CA.PUB, or write -v VENDOR.PRV -s VENDOR.PUB.SIG -c ROOT-CA.PUB"}
	}
	certificate, from, err := t.findCertificate(c, read)
	if err != nil {
		return nil, from, err
	}
	s, err = sign.NewSigner(vendor, certificate, trust)
	if err != nil && from == t.certificateFrom { // the mount's own: what lies beside it is not the caller's to read
		return nil, from, named(from, err)
	}
	if err != nil {
		return nil, from, trust.Explain(err, vendor.Public(), certificate, from, read)
	}
	if c.certificate != "" {
		from = ""
	}
	return s, from, nil
}

// unnamed is the error of opening a file without the name that was written, if
// that may hold a part of a key, as long as no file of that name was seen.
func unnamed(name, of string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno == syscall.EFBIG || !mayHoldKey(name) {
		return err
	}
	return &fault{errno, fmt.Sprintf("the file that was named for %s: %v", of, errno)}
}

// mayHoldKey says whether a name is, or has in it, what twelve bytes of a key or more could be in base64 or hex. A path
// with a few capitals or digits is not taken for that. Of a name without a slash every byte has to be one that names of files mostly
// have, for a few bytes of a key in DER may be text by chance.
func mayHoldKey(name string) bool {
	if strings.Trim(name, base64) == "" || !strings.Contains(name, "/") && strings.Trim(name, base64+"._@- ") != "" {
		return true
	}
	var run, capitals, others, hex, digits int
	for _, c := range []byte(name) {
		isDigit, isCapital := '0' <= c && c <= '9', 'A' <= c && c <= 'Z'
		switch {
		case strings.IndexByte(base64, c) < 0:
			run, capitals, others = 0, 0, 0
		case isCapital:
			run, capitals = run+1, capitals+1
		case isDigit || c == '+' || c == '=':
			run, others = run+1, others+1
		default:
			run++
		}
		switch {
		case isDigit:
			hex, digits = hex+1, digits+1
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			hex++
		default:
			hex, digits = 0, 0
		}
		if run >= 18 && capitals >= 3 && capitals+others >= 6 || hex >= 24 && digits >= 4 {
			return true
		}
	}
	return false
}

// expand puts the *.pub of each directory in the place of its name.
func expand(names []string, list func(string) ([]string, bool, error)) ([]string, error) {
	var files []string
	for _, name := range names {
		in, isDir, err := list(name)
		switch {
		case err != nil:
			return nil, unnamed(name, "a root CA", err)
		case !isDir:
			in = []string{name}
		case len(in) == 0:
			return nil, &fault{errNoKey, name + ": there is no *.pub in this directory"}
		}
		files = append(files, in...)
	}
	return files, nil
}

func named(name string, err error) error {
	if name == "" {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// findCertificate reads the vendor's certificate: the one that the command
// names, or else the first that is there of <key>.pub.sig and vendor.pub.sig
// beside the key, and the mount's.
func (t *Tree) findCertificate(c *command, read func(string) ([]byte, error)) (text []byte, from string, err error) {
	if c.certificate != "" {
		text, err := read(c.certificate)
		return text, c.certificate, unnamed(c.certificate, "the certificate", err)
	}
	var tried []string
	if c.vendor != "" {
		dir, base := path.Split(c.vendor)
		for cut := true; cut; {
			cut = false
			for _, ext := range []string{".prv", ".key", ".der", ".pem"} {
				if rest, ok := strings.CutSuffix(base, ext); ok && rest != "" {
					base, cut = rest, true
				}
			}
		}
		for _, name := range []string{dir + base + ".pub.sig", dir + "vendor.pub.sig"} {
			text, err := read(name)
			if err == nil {
				return text, name, nil
			}
			if errnoOf(err) != errnoOf(errAbsent) {
				return nil, name, err
			}
			tried = append(tried, name)
		}
	}
	if t.certificate != nil {
		return t.certificate, t.certificateFrom, nil
	}
	why := "no certificate of the vendor key"
	if len(tried) > 0 {
		why += fmt.Sprintf(" (looked for %s)", strings.Join(slices.Compact(tried), " and "))
	}
	return nil, "", &fault{errNoKey, why + ": give -s VENDOR.PUB.SIG, or mount with one"}
}

// bound tells which content a control file was opened on: the digests of the
// configs of the images that a signing would sign.
func (d *imageDir) bound(ctx context.Context) ([]digest.Digest, error) {
	image, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	return configsOf(ctx, image.snap, image.entry)
}

func configsOf(ctx context.Context, snap *layout.Snapshot, e layout.Entry) ([]digest.Digest, error) {
	images, err := snap.Images(ctx, e)
	if err != nil {
		return nil, err
	}
	var configs []digest.Digest
	var documents layout.Documents
	for _, image := range images {
		m, err := snap.Manifest(ctx, image)
		if err == nil {
			err = documents.Add(image.Size, 0)
		}
		if err != nil && (!errors.Is(err, layout.ErrCorrupt) || m != nil) {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if m != nil && m.Kind == layout.KindImage {
			configs = append(configs, m.Doc.Config.Digest)
		}
	}
	return configs, nil
}

// pick finds, in a state of the app, what is to be signed: the image that was
// opened, though somebody else may have signed it since.
func (t *Tree) pick(ctx context.Context, d *imageDir, bound []digest.Digest) func(*layout.Snapshot) ([]layout.Entry, error) {
	return func(snap *layout.Snapshot) ([]layout.Entry, error) {
		now := *d
		e, err := now.find(ctx, snap)
		for d.digest != "" && errors.Is(err, layout.ErrNotFound) {
			t.mu.Lock()
			next, ok := t.moved[movedKey{d.id, now.digest}]
			t.mu.Unlock()
			if !ok {
				e, err = resigned(ctx, snap, bound)
				break
			}
			now.digest = next
			e, err = now.find(ctx, snap)
		}
		if errors.Is(err, layout.ErrNotFound) {
			return nil, &fault{errStale, "the image is not there any more; open it again"}
		}
		if err != nil {
			return nil, err
		}
		configs, err := configsOf(ctx, snap, e)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(configs, bound) {
			return nil, &fault{errStale, "another image has come in its place since it was opened; look at it, and open it again"}
		}
		return []layout.Entry{e}, nil
	}
}

// resigned finds an image by its config, after another process signed it and
// so gave it a new digest.
func resigned(ctx context.Context, snap *layout.Snapshot, bound []digest.Digest) (layout.Entry, error) {
	entries, err := snap.Entries(ctx)
	if err != nil {
		return layout.Entry{}, err
	}
	var found []layout.Entry
	for _, e := range entries {
		configs, err := configsOf(ctx, snap, e)
		if err != nil {
			return layout.Entry{}, err
		}
		if len(bound) > 0 && slices.Equal(configs, bound) {
			found = append(found, e)
		}
	}
	if len(found) != 1 { // with two nobody knows which of them it was
		return layout.Entry{}, layout.ErrNotFound
	}
	return found[0], nil
}

// command carries out what a caller wrote to the control file of an image
// directory that was opened on bound. text is the outcome in words, good or
// bad; notOn is the mount's device. change is nil if nothing was done.
func (t *Tree) command(ctx context.Context, d *imageDir, bound []digest.Digest, c Caller, notOn uint64, data []byte) (text string, change *layout.Change, err error) {
	app, err := d.app()
	var outcome *sign.Outcome
	var from, note string
	if err == nil {
		var cmd *command
		if cmd, err = parseCommand(data); err == nil {
			var signer *sign.Signer
			read := func(name string) ([]byte, error) { return readAs(ctx, c, notOn, name) }
			list := func(name string) ([]string, bool, error) { return listAs(ctx, c, notOn, name) }
			if signer, from, err = t.signer(cmd, read, list); err == nil {
				if !t.Verifier.Trust.Has(signer.CA()) {
					note = "; this mount does not trust root CA " + signer.CA().Fingerprint()
				}
				outcome, err = signer.SignAs(ctx, app, rightsOf(c), t.pick(ctx, d, bound))
			}
		}
	}
	if app == nil && errors.Is(err, errAbsent) || errors.Is(err, layout.ErrNotFound) {
		err = &fault{errStale, "the app is not there any more; open the image again"}
	}
	if err != nil {
		text = inWords(err)
	} else {
		change = outcome.Change
		if from != "" {
			note = "; certificate " + from + note
		}
		text = outcome.Text() + note
	}
	text = escape(text, false)
	t.remember(ctx, d, app, change, text)
	t.log.add(c.UID, "sign", d.path(), text)
	return text, change, err
}

// inWords is the text of an error for the log and who reads it.
func inWords(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted; nothing was changed"
	}
	return err.Error()
}

// remember keeps what became of digests, and the outcome for who reads `sign`.
func (t *Tree) remember(ctx context.Context, d *imageDir, app *layout.App, change *layout.Change, text string) {
	t.mu.Lock()
	if len(t.moved) > 1<<16 {
		clear(t.moved)
	}
	if len(t.outcomes) > 1<<12 {
		clear(t.outcomes)
	}
	if change != nil {
		for old, now := range change.Moved {
			t.moved[movedKey{d.id, old}] = now
			delete(t.outcomes, movedKey{d.id, old})
			delete(t.moved, movedKey{d.id, now}) // it is back
		}
	}
	t.mu.Unlock()
	if app == nil {
		return
	}
	var entry layout.Entry
	err := errAbsent
	if change != nil { // what is there now need not be asked for
		if entry, err = d.find(ctx, change.Before); err == nil {
			entry.Digest = cmp.Or(change.Moved[entry.Digest], entry.Digest)
		}
	}
	if err != nil {
		image, err := d.open(ctx)
		if err != nil {
			return
		}
		entry = image.entry
	}
	t.mu.Lock()
	t.outcomes[movedKey{d.id, entry.Digest}] = text
	t.mu.Unlock()
}

// path is where in the mount the directory is.
func (d *imageDir) path() string {
	p := d.name + "/manifests/" + strings.Replace(string(d.digest), ":", "-", 1)
	if d.digest == "" {
		name, _ := tagName(d.tag)
		p = d.name + "/tags/" + name
	}
	if d.platform != "" {
		p += "/platforms/" + d.platform
	}
	return p
}
