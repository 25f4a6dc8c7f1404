package faults

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/layout/sample"
	"irfs/sign"
)

// secondVendor makes another vendor whom the root CA certifies, and gives the path of its key; the
// certificate lies beside it.
func secondVendor(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(key("root-ca.prv"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err1 := sign.ParsePrivateKey(text)
	second, err2 := sign.GenerateKey()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.Sign(second.Public().DER())
	name := newDir(t, "second") + "/second"
	err = errors.Join(err, os.WriteFile(name+".prv", second.DER(), 0o600), os.WriteFile(name+".pub.sig", certificate, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return name + ".prv"
}

// writeOnce opens a control file as a shell's `>` does, and writes a line to it.
func writeOnce(file, line string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// vendorsOf tells, with no code of irfs, who signed an image, or the images of an index: the vendors'
// keys, "" for an image without any of the annotations. Whatever is half signed, or signed wrong, is
// an error.
func vendorsOf(app, digest string) (map[string]bool, error) {
	text, err := os.ReadFile(blobOf(app, digest))
	if err != nil {
		return nil, err
	}
	var doc struct {
		document
		Annotations map[string]string
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	vendors := map[string]bool{}
	for _, d := range doc.Manifests {
		more, err := vendorsOf(app, d.Digest)
		if err != nil {
			return nil, err
		}
		maps.Copy(vendors, more)
	}
	if doc.Config == nil {
		return vendors, nil
	}
	const prefix = "com.samsung.islet.image."
	signature, vendor, certificate := doc.Annotations[prefix+"signature"], doc.Annotations[prefix+"vendorpub"], doc.Annotations[prefix+"vendorpub.signature"]
	if signature == "" && vendor == "" && certificate == "" {
		return map[string]bool{"": true}, nil
	}
	config, err1 := os.ReadFile(blobOf(app, doc.Config.Digest))
	ca, err2 := os.ReadFile(key("root-ca.pub"))
	if err := errors.Join(err1, err2, holdsFor(ca, vendor, certificate), signed(config, vendor, signature)); err != nil {
		return nil, fmt.Errorf("%s: %w", digest, err)
	}
	return map[string]bool{vendor: true}, nil
}

// holdsFor checks the certificate, and signed the signature of a config; both in hex.
func holdsFor(ca []byte, vendor, certificate string) error {
	der, err := hex.DecodeString(vendor)
	if err != nil {
		return err
	}
	return signed(der, hex.EncodeToString(ca), certificate)
}

func signed(data []byte, public, signature string) error {
	der, err1 := hex.DecodeString(public)
	sig, err2 := hex.DecodeString(signature)
	any, err3 := x509.ParsePKIXPublicKey(der)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if sum := sha512.Sum384(data); !ecdsa.VerifyASN1(any.(*ecdsa.PublicKey), sum[:], sig) {
		return errors.New("a signature does not match")
	}
	return nil
}

func blobOf(app, digest string) string {
	return app + "/blobs/" + strings.Replace(digest, ":", "/", 1)
}

// vendorIn is the public key of a private one, as vendorsOf gives it.
func vendorIn(t testing.TB, prv string) string {
	t.Helper()
	text, err := os.ReadFile(prv)
	if err != nil {
		t.Fatal(err)
	}
	k, err := sign.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(k.Public().DER())
}

// torn says whether whole failed because index.json is no JSON, as it is while a tool writes it in
// place.
func torn(err error) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax)
}

// spare lists the blobs of an app that index.json does not reach, each of which has to hash to its name.
func spare(app string) ([]string, error) {
	_, used, err := reach(app)
	var found []string
	files, _ := filepath.Glob(app + "/blobs/sha256/*")
	for _, file := range files {
		digest := "sha256:" + filepath.Base(file)
		if _, herr := hashed(file, digest); herr != nil {
			err = errors.Join(err, herr)
		} else if !used[digest] {
			found = append(found, digest)
		}
	}
	return found, err
}

// tidy checks that there is nothing in a registry and its app but layouts. What a mount works with goes
// shortly after its last close.
func tidy(t testing.TB, app string) {
	t.Helper()
	names := func() (names []string) {
		for _, dir := range []string{app, filepath.Dir(app)} {
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Error(err)
			}
			for _, e := range list {
				names = append(names, e.Name())
			}
		}
		return names
	}
	for end := time.Now().Add(5 * time.Second); !slices.Equal(names(), []string{"blobs", "index.json", "oci-layout", "app"}); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("left over: %q", names())
			return
		}
	}
}

// meanwhile runs check again and again until stop is called, which gives how often it ran.
func meanwhile(t testing.TB, check func()) (stop func() int) {
	var ended atomic.Bool
	runs := make(chan int)
	go func() {
		n := 0
		for ; !ended.Load(); n++ {
			check()
			time.Sleep(time.Millisecond)
		}
		runs <- n
	}()
	stop = sync.OnceValue(func() int {
		ended.Store(true)
		return <-runs
	})
	t.Cleanup(func() { stop() })
	return stop
}

// A ledger has which tags somebody was told are signed.
type ledger struct {
	mu   sync.Mutex
	tags map[string]bool
}

func (l *ledger) add(tag string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tags[tag] = true
}

func (l *ledger) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.tags))
}

// Fifty sign at once, each an image of his own, through two mounts and with the command; others sign one
// image that has several tags, with different keys, or an index that holds images of the first
// ones, or an image by a digest that is another by then. What was acknowledged is there from then on.
func TestSignersTogether(t *testing.T) {
	house.Need(t, "fuse", "root", "openssl")
	images := 50
	if full {
		images = 200
	}
	registry := newDir(t, "registry")
	app := registry + "/app"
	l := sample.New()
	var list []v1.Descriptor
	configs := map[string]bool{}
	for i := range images {
		d := l.Image(sample.Linux("amd64"), sample.Plain("a", fmt.Sprint(i)))
		var doc document
		if err := json.Unmarshal(l.Bytes(d), &doc); err != nil {
			t.Fatal(err)
		}
		configs[doc.Config.Digest] = true
		l.Tag(fmt.Sprintf("t%d", i), d)
		list = append(list, d)
	}
	for i := range 4 {
		l.Tag(fmt.Sprintf("same%d", i), list[0])
	}
	inner := l.Index(list[:10]...)
	l.Tag("inner", inner)
	l.Tag("outer", l.Index(inner, list[20]))
	if err := l.WriteDir(app); err != nil {
		t.Fatal(err)
	}
	mounts := []string{mount(t, registry), mount(t, registry)}
	second := secondVendor(t)
	known := map[string]bool{vendorIn(t, key("vendor.prv")): true, vendorIn(t, second): true}

	// What each does once all may begin. Control files are opened before.
	type signer struct {
		tag string
		do  func() error
	}
	var signers []signer
	through := func(tag, dir, prv string) {
		f, err := os.OpenFile(dir+"/sign", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		signers = append(signers, signer{tag, func() error {
			_, err := f.WriteString(prv + "\n")
			return errors.Join(err, f.Close())
		}})
	}
	byCommand := func(tag string) {
		signers = append(signers, signer{tag, func() error {
			_, err := try("irfs", append([]string{"sign-image", "-r", registry, "-a", "app", "-d", tag}, signing()...)...)
			return err
		}})
	}
	for i := range images {
		tag := fmt.Sprintf("t%d", i)
		switch i % 3 {
		case 0, 1:
			through(tag, mounts[i%3]+"/app/tags/"+tag, key("vendor.prv"))
		default:
			byCommand(tag)
		}
	}
	for i := range 4 {
		tag := fmt.Sprintf("same%d", i)
		through(tag, mounts[i%2]+"/app/tags/"+tag, []string{key("vendor.prv"), second}[i/2])
	}
	for i, tag := range []string{"inner", "outer", "inner", "outer"} {
		through(tag, mounts[i/2]+"/app/tags/"+tag, []string{second, key("vendor.prv")}[i/2])
	}
	byCommand("outer")
	for i := range 10 {
		d := strings.Replace(string(list[i].Digest), ":", "-", 1)
		through(fmt.Sprintf("t%d", i), mounts[i%2]+"/app/manifests/"+d, second)
	}

	told := &ledger{tags: map[string]bool{}}
	check := func() {
		acknowledged := told.list()
		tags, err := whole(app)
		if err != nil {
			t.Error(err)
			return
		}
		for tag, digest := range tags {
			vendors, err := vendorsOf(app, digest)
			if err != nil {
				t.Errorf("%s: %v", tag, err)
			}
			if slices.Contains(acknowledged, tag) && (vendors[""] || len(vendors) == 0) {
				t.Errorf("%s was signed, and is not", tag)
			}
		}
	}
	stop := meanwhile(t, check)
	start := make(chan struct{})
	var all sync.WaitGroup
	var busy atomic.Int64
	for _, s := range signers {
		all.Go(func() {
			<-start
			switch err := s.do(); {
			case err == nil:
				told.add(s.tag)
			// Thirty seconds are not enough for hundreds on a slow machine.
			case full && (errors.Is(err, syscall.EBUSY) || strings.Contains(err.Error(), "another process is changing this app")):
				busy.Add(1)
			default:
				t.Errorf("%s: %v", s.tag, err)
			}
		})
	}
	began := time.Now()
	close(start)
	all.Wait()
	took := time.Since(began)
	looks := stop()
	t.Logf("%d signers, %d of them busy, in %v; %d looks meanwhile", len(signers), busy.Load(), took, looks)
	if looks < 3 {
		t.Errorf("only %d looks meanwhile: nothing was tried", looks)
	}
	check()
	if n := len(told.list()); busy.Load() == 0 && n != images+4+2 {
		t.Errorf("%d tags were signed", n)
	}
	for i, tag := range told.list() {
		for _, mnt := range mounts {
			if word, err := os.ReadFile(mnt + "/app/tags/" + tag + "/verify"); err != nil || string(word) != "verified\n" {
				t.Errorf("%s: verify is %q, %v", tag, word, err)
			}
		}
		if i >= 5 || tag == "inner" || tag == "outer" {
			continue
		}
		dir := mounts[i%2] + "/app/tags/" + tag
		for _, names := range [][]string{{key("root-ca.pub"), dir + "/vendor.pub.sig", dir + "/vendor.pub"}, {dir + "/vendor.pub", dir + "/signature", dir + "/config.json"}} {
			run(t, "openssl", "dgst", "-sha384", "-keyform", "DER", "-verify", names[0], "-signature", names[1], names[2])
		}
	}
	if busy.Load() == 0 {
		rest := run(t, "irfs", "status", "-r", registry, "-c", key("root-ca.pub"), "--full", "--only", "unsigned,untrusted,invalid,corrupt,unknown")
		if rest != "" {
			t.Errorf("not verified:\n%s", rest)
		}
	}
	tidy(t, app)
	// Nothing is left of it but the manifests and indexes that were replaced.
	left, err := spare(app)
	if err != nil {
		t.Error(err)
	}
	manifests := 0
	for _, digest := range left {
		text, err := os.ReadFile(blobOf(app, digest))
		var doc document
		if err = errors.Join(err, json.Unmarshal(text, &doc)); err != nil {
			t.Errorf("left over: %s: %v", digest, err)
			continue
		}
		if doc.Config != nil {
			manifests++
		}
		if doc.Config != nil && !configs[doc.Config.Digest] || doc.Config == nil && len(doc.Manifests) == 0 {
			t.Errorf("left over: %s: %s", digest, text)
		}
		vendors, err := vendorsOf(app, digest)
		if err != nil {
			t.Errorf("left over: %v", err)
		}
		for vendor := range vendors {
			if vendor != "" && !known[vendor] {
				t.Errorf("left over: %s: signed by %s", digest, vendor)
			}
		}
	}
	// Of each image the unsigned one; of those that two vendors sign one more.
	if most := images + 12; manifests > most || busy.Load() == 0 && manifests < images {
		t.Errorf("%d manifests are left over, and %d images were signed", manifests, images)
	}
}

// Signers beside tools that take no lock. umoci gives tags, and renames its index.json over the one that is
// there; skopeo copies images in, and overwrites it in place. A reader sees whole states, and torn ones
// only of skopeo's; a signing is done, or busy; and where no tool was at work it is there.
func TestSignBesideOtherTools(t *testing.T) {
	house.Need(t, "fuse", "root", "umoci", "skopeo")
	// At least so long, and until enough was tried.
	least, most := 1500*time.Millisecond, time.Minute
	if full {
		least, most = time.Minute, 2*time.Minute
	}
	second := secondVendor(t)
	source := newDir(t, "source")
	l := sample.New()
	copied := l.Image(sample.Linux("arm64"), sample.Gzip("b", "of skopeo's"))
	l.Tag("x", copied)
	if err := l.WriteDir(source + "/layout"); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		tool  string
		tears bool
		args  func(app string, n int) []string
	}{
		{"umoci", false, func(app string, n int) []string {
			return []string{"tag", "--image", app + ":base", fmt.Sprintf("u%d", n%5)}
		}},
		{"skopeo", true, func(app string, n int) []string {
			return []string{"--insecure-policy", "copy", "-q", "oci:" + source + "/layout:x", fmt.Sprintf("oci:%s:s%d", app, n%5)}
		}},
	} {
		t.Run(row.tool, func(t *testing.T) {
			registry := newDir(t, "registry")
			app := registry + "/app"
			l := sample.New()
			l.Tag("base", l.Image(sample.Linux("amd64"), sample.Gzip("a", "base")))
			const signers = 4
			for i := range signers {
				l.Tag(fmt.Sprintf("t%d", i), l.Image(sample.Linux("amd64"), sample.Gzip("a", fmt.Sprint(i))))
			}
			if err := l.WriteDir(app); err != nil {
				t.Fatal(err)
			}
			mnt := mount(t, registry)
			keys := []string{key("vendor.prv"), second}
			vendors := []string{vendorIn(t, keys[0]), vendorIn(t, keys[1])}

			// epoch is odd while the tool runs; lasted is how long the last signing took.
			var epoch, lasted, torns, signings, busies, certain atomic.Int64
			var tornSince time.Time
			stop := meanwhile(t, func() {
				tags, err := whole(app)
				theirs := row.tears && err != nil && strings.Contains(err.Error(), copied.Digest.Encoded())
				switch {
				case torn(err) && !row.tears:
					t.Error(err)
				// skopeo writes the manifest in place as well, each time.
				case torn(err), theirs:
					// irfs would have renamed it so, and it would stay so.
					if torns.Add(1); tornSince.IsZero() {
						tornSince = time.Now()
					}
					if d := time.Since(tornSince); d > time.Second {
						t.Errorf("index.json has been torn for %v: %v", d, err)
					}
					return
				case err != nil:
					t.Error(err)
				}
				tornSince = time.Time{}
				for tag, digest := range tags {
					if digest == string(copied.Digest) {
						continue
					}
					if _, err := vendorsOf(app, digest); err != nil {
						t.Errorf("%s: %v", tag, err)
					}
				}
			})
			began := time.Now()
			var runs atomic.Int64
			goesOn := func() bool {
				d := time.Since(began)
				return d < least || d < most && (runs.Load() < 8 || certain.Load() < 5)
			}
			var all sync.WaitGroup
			all.Go(func() {
				for goesOn() {
					epoch.Add(1)
					if _, err := try(row.tool, row.args(app, int(runs.Add(1)))...); err != nil {
						t.Error(err)
					}
					epoch.Add(1)
					// Time for some to sign while nobody is in between.
					time.Sleep(rand.N(200*time.Millisecond + 3*time.Duration(lasted.Load())))
				}
			})
			signOnce := func(i, n int) {
				tag := fmt.Sprintf("t%d", i)
				before := epoch.Load()
				start := time.Now()
				var err error
				if i == 0 {
					args := []string{"sign-image", "-r", registry, "-a", "app", "-d", tag, "-v", keys[n%2],
						"-s", strings.TrimSuffix(keys[n%2], ".prv") + ".pub.sig", "-c", key("root-ca.pub")}
					_, err = try("irfs", args...)
				} else {
					err = writeOnce(mnt+"/app/tags/"+tag+"/sign", keys[n%2])
				}
				signings.Add(1)
				lasted.Store(int64(time.Since(start)))
				switch {
				case errors.Is(err, syscall.EBUSY), i == 0 && err != nil && strings.Contains(err.Error(), "another tool"):
					busies.Add(1)
					return
				case err != nil:
					t.Errorf("signing %s: %v", tag, err)
					return
				}
				if before%2 != 0 || epoch.Load() != before {
					return // the tool may have put its index.json over ours
				}
				tags, err := whole(app)
				if epoch.Load() != before {
					return
				}
				is, err2 := vendorsOf(app, tags[tag])
				if err := errors.Join(err, err2); err != nil || len(is) != 1 || !is[vendors[n%2]] {
					t.Errorf("%s was signed with %s, and no tool overwrote it; it is signed by %v, %v", tag, keys[n%2], is, err)
				}
				certain.Add(1)
			}
			for i := range signers {
				all.Go(func() {
					for n := 0; goesOn(); n++ {
						signOnce(i, n)
					}
				})
			}
			all.Wait()
			looks := stop()
			t.Logf("%d runs of %s, %d signings (%d busy, %d that nothing overwrote), %d looks (%d torn)",
				runs.Load(), row.tool, signings.Load(), busies.Load(), certain.Load(), looks, torns.Load())
			if runs.Load() < 8 || certain.Load() < 5 || looks < 10 {
				t.Error("too little was tried")
			}
			for i := range signers {
				signOnce(i, 0)
				word, err := os.ReadFile(fmt.Sprintf("%s/app/tags/t%d/verify-full", mnt, i))
				if err != nil || string(word) != "verified\n" {
					t.Errorf("t%d: %q, %v", i, word, err)
				}
			}
			if _, err := whole(app); err != nil {
				t.Error(err)
			}
		})
	}
}

// archive writes a layout as a tar archive.
func archive(t testing.TB, file string, l *sample.Layout) {
	t.Helper()
	var b bytes.Buffer
	if err := errors.Join(l.WriteTar(&b), os.WriteFile(file, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// Archives for one app, which is not there yet, all at once, through two mounts and with the command. Every
// fourth has a tag that others have too, with another image.
func TestImportersTogether(t *testing.T) {
	house.Need(t, "fuse", "root")
	importers, rounds := 20, 1
	if full {
		importers, rounds = 100, 5
	}
	dir := newDir(t, "archives")
	digests := make([]string, importers)
	shared := map[string]bool{}
	for i := range importers {
		l := sample.New()
		d := l.Image(sample.Linux("amd64"), sample.Gzip("a", fmt.Sprint(i), "same", "in all of them"), sample.Gzip("b", "in all of them"))
		l.Tag(fmt.Sprintf("t%d", i), d)
		if i%4 == 0 {
			l.Tag("shared", d)
			shared[string(d.Digest)] = true
		}
		digests[i] = string(d.Digest)
		archive(t, fmt.Sprintf("%s/%d.tar", dir, i), l)
	}
	for _, onExist := range []string{"add", "merge", "fail"} {
		t.Run(onExist, func(t *testing.T) {
			for range rounds {
				importTogether(t, onExist, dir, digests, shared)
			}
		})
	}
}

func importTogether(t *testing.T, onExist, dir string, digests []string, shared map[string]bool) {
	registry := newDir(t, "registry")
	app := registry + "/app"
	mounts := []string{mount(t, registry, "-o", "on_exist="+onExist), mount(t, registry, "-o", "on_exist="+onExist)}
	stop := meanwhile(t, func() {
		if _, err := whole(app); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		} else if err != nil {
			if _, err := os.Stat(app); err == nil { // it came whole
				if _, err := whole(app); err != nil {
					t.Error(err)
				}
			}
		}
	})
	start := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	done, exist, busy := map[int]bool{}, 0, 0
	// Several names that mean the same app; two that write one file are told so.
	names := []string{"app.tar", "app.oci", "app.tgz", "app.tar.gz"}
	for i := range digests {
		file := fmt.Sprintf("%s/%d.tar", dir, i)
		cmd := command("cp", file, fmt.Sprintf("%s/import/%s", mounts[i%2], names[i/3%len(names)]))
		if i%3 == 2 {
			cmd = command("irfs", "import", "-r", registry, "-a", "app", "--on-exist", onExist, file)
		}
		all.Go(func() {
			<-start
			_, err := output(cmd)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done[i] = true
			// The name in import/, which cp makes with O_EXCL, and not the app.
			case strings.Contains(err.Error(), "cannot create regular file"), strings.Contains(err.Error(), "Device or resource busy"):
				busy++
			case strings.Contains(err.Error(), "File exists"), strings.Contains(err.Error(), "is there already"):
				exist++
			default:
				t.Error(err)
			}
		})
	}
	close(start)
	all.Wait()
	looks := stop()
	tags, err := whole(app)
	if err != nil {
		t.Fatal(err)
	}
	sharing := 0
	for i, digest := range digests {
		is := tags[fmt.Sprintf("t%d", i)]
		switch {
		case done[i] && is != digest:
			t.Errorf("%d was imported, and its tag names %q", i, is)
		case !done[i] && is != "":
			t.Errorf("%d was refused, and its tag is there", i)
		}
		if done[i] && i%4 == 0 {
			sharing++
		}
	}
	t.Logf("%d imported, %d exist, %d busy, %d looks", len(done), exist, busy, looks)
	if sharing > 0 && !shared[tags["shared"]] {
		t.Errorf("the tag of several names %q", tags["shared"])
	}
	switch {
	case onExist == "fail" && len(done) != 1:
		t.Errorf("%d were imported", len(done))
	case onExist == "add" && sharing != 1:
		t.Errorf("%d whose tag cannot be theirs at once were imported", sharing)
	case onExist == "merge" && exist != 0:
		t.Errorf("%d were told that something exists", exist)
	}
	for _, mnt := range mounts {
		list, err := os.ReadDir(mnt + "/app/tags")
		if err != nil || len(list) != len(tags) {
			t.Errorf("%d tags, and the mount shows %d, %v", len(tags), len(list), err)
		}
	}
	tidy(t, app)
	left, err := spare(app)
	if err != nil || onExist != "merge" && len(left) > 0 {
		t.Errorf("left over: %s, %v", left, err)
	}
}

// `irfs gc --grace 0s` in a loop beside signers and importers. The importers move a tag between images, so
// that what is in use becomes unused and is wanted again.
func TestCollectBesideWriters(t *testing.T) {
	house.Need(t, "fuse", "root")
	least, most := 2*time.Second, time.Minute
	if full {
		least, most = 2*time.Minute, 3*time.Minute
	}
	registry, dir := newDir(t, "registry"), newDir(t, "archives")
	app := registry + "/app"
	l := sample.New()
	const signers = 2
	for i := range signers {
		l.Tag(fmt.Sprintf("t%d", i), l.Image(sample.Linux("amd64"), sample.Gzip("a", fmt.Sprint(i))))
	}
	if err := l.WriteDir(app); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		l := sample.New()
		l.Tag("moving", l.Image(sample.Linux("amd64"), sample.Gzip("x", fmt.Sprint(i)), sample.Plain("y", strings.Repeat(fmt.Sprint(i), 1<<20))))
		archive(t, fmt.Sprintf("%s/%d.tar", dir, i), l)
	}
	mounts := []string{mount(t, registry, "-o", "on_exist=merge"), mount(t, registry)}
	keys := []string{key("vendor.prv"), secondVendor(t)}
	var changed atomic.Int64 // how often a look was too late
	stop := meanwhile(t, func() {
		before, err1 := os.ReadFile(app + "/index.json")
		_, err := whole(app)
		after, err2 := os.ReadFile(app + "/index.json")
		switch {
		case err1 != nil || err2 != nil:
			t.Error(err1, err2)
		case err != nil && bytes.Equal(before, after):
			t.Error(err)
		case err != nil:
			changed.Add(1)
		}
	})
	began := time.Now()
	var all sync.WaitGroup
	counts := map[string]*atomic.Int64{"gc": {}, "sign": {}, "cp": {}, "import": {}}
	goesOn := func() bool {
		d := time.Since(began)
		enough := true
		for _, n := range counts {
			enough = enough && n.Load() >= 3
		}
		return d < least || d < most && !enough && !t.Failed()
	}
	loop := func(what string, do func(n int) error) {
		all.Go(func() {
			for n := 0; goesOn(); n++ {
				if err := do(n); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				counts[what].Add(1)
			}
		})
	}
	var removed atomic.Int64
	loop("gc", func(int) error {
		out, err := try("irfs", "gc", "-r", registry, "--grace", "0s")
		removed.Add(int64(strings.Count(out, "sha256:")))
		return err
	})
	for i := range signers {
		loop("sign", func(n int) error { return writeOnce(fmt.Sprintf("%s/app/tags/t%d/sign", mounts[i], i), keys[n%2]) })
	}
	loop("cp", func(n int) error {
		_, err := try("cp", fmt.Sprintf("%s/%d.tar", dir, n%2), mounts[0]+"/import/app.tar")
		return err
	})
	loop("import", func(n int) error {
		_, err := try("irfs", "import", "-r", registry, "-a", "app", "--on-exist", "merge", fmt.Sprintf("%s/%d.tar", dir, n%2))
		return err
	})
	all.Wait()
	looks := stop()
	text := ""
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		n := counts[what].Load()
		text += fmt.Sprintf("%d × %s, ", n, what)
		if n < 3 {
			t.Errorf("%s: only %d times", what, n)
		}
	}
	t.Logf("%s%d blobs removed, %d looks (%d too late)", text, removed.Load(), looks, changed.Load())
	if removed.Load() == 0 {
		t.Error("gc removed nothing")
	}
	run(t, "irfs", "gc", "-r", registry, "--grace", "0s")
	if _, err := whole(app); err != nil {
		t.Error(err)
	}
	if left, err := spare(app); err != nil || len(left) > 0 {
		t.Errorf("left over: %s, %v", left, err)
	}
	tidy(t, app)
	for i := range signers {
		if word, err := os.ReadFile(fmt.Sprintf("%s/app/tags/t%d/verify-full", mounts[i], i)); err != nil || string(word) != "verified\n" {
			t.Errorf("t%d: %q, %v", i, word, err)
		}
	}
}

func init() { roles["readers"] = readers }

// readers reads a file in many threads at once, and fails unless each gets the content.
func readers(args []string) error {
	file, content := args[1], args[2]
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	errs := make([]error, n)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			runtime.LockOSThread() // which FUSE takes for a process of its own
			<-start
			text, err := os.ReadFile(file)
			if err == nil && string(text) != content {
				err = fmt.Errorf("%s is %q", file, text)
			}
			errs[i] = err
		})
	}
	close(start)
	all.Wait()
	return errors.Join(errs...)
}

// A thousand threads of ten processes read the word of one image, which nobody has read before: the image is
// read and checked once, everybody gets the word, and then the mount has no more files open and no more goroutines at
// work than one that was read once.
func TestReadersOfOneVerify(t *testing.T) {
	house.Need(t, "fuse", "root")
	processes, threads := 10, 100
	if full {
		threads = 500
	}
	registry := newDir(t, "registry")
	l := sample.New()
	// Large enough for its check to last while the readers come.
	platform := sample.Linux("amd64")
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]},"x":[%s0]}`,
		sample.Plain("a", strings.Repeat("b", 4<<20)).DiffID(), strings.Repeat("0,", 3<<20))
	image := l.Manifest(v1.Manifest{
		Config: l.Blob(v1.MediaTypeImageConfig, []byte(config)),
		Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayer, sample.Plain("a", strings.Repeat("b", 4<<20)).Blob())},
	})
	image.Platform = &platform
	// The kernel asks for one name once; each process has its own.
	for i := range processes {
		l.Tag(fmt.Sprintf("x%d", i), image)
	}
	if err := l.WriteDir(registry + "/app"); err != nil {
		t.Fatal(err)
	}
	run(t, "irfs", append([]string{"sign-image", "-r", registry, "-a", "app", "-d", "x0"}, signing()...)...)
	tags, err := whole(registry + "/app")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(blobOf(registry+"/app", tags["x1"]))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	// What changed less than two seconds ago is read at every look, for its times tell nothing.
	time.Sleep(2100 * time.Millisecond)

	quiet := serveAndDump(t, registry, func(mnt string, pid int) {
		for _, name := range []string{"verify", "verify-full"} {
			if word, err := os.ReadFile(mnt + "/app/tags/x0/" + name); err != nil || string(word) != "verified\n" {
				t.Errorf("%s is %q, %v", name, word, err)
			}
		}
	})
	crowded := serveAndDump(t, registry, func(mnt string, pid int) {
		if _, err := os.Stat(mnt + "/app/tags/x0"); err != nil {
			t.Error(err)
		}
		before := openFiles(pid)
		for _, row := range []struct {
			name string
			blob string
		}{{"verify", doc.Config.Digest}, {"verify-full", doc.Layers[0].Digest}} {
			n := timesOpened(t, blobOf(registry+"/app", row.blob), func() {
				readTogether(t, processes, threads, mnt+"/app/tags/x%d/"+row.name)
			})
			if n != 1 {
				t.Errorf("%s: its blob was opened %d times", row.name, n)
			}
		}
		// RELEASE comes after close has returned.
		for end := time.Now().Add(5 * time.Second); openFiles(pid) > before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d files are open, and %d were before", openFiles(pid), before)
				break
			}
		}
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		// Go keeps the threads that it once had, but a reader who waits takes none.
		if err != nil || len(tasks) > 100 {
			t.Errorf("%d threads, %v", len(tasks), err)
		}
		t.Logf("%d threads after %d readers", len(tasks), 2*processes*threads)
	})
	t.Logf("%d goroutines, %d in a mount that was read once", len(crowded), len(quiet))
	// go-fuse has some more or less that wait for requests.
	if len(quiet) == 0 || len(crowded) > len(quiet)+16 {
		t.Errorf("%d goroutines, and in a mount that was read once %d:\n%s", len(crowded), len(quiet), strings.Join(crowded, "\n\n"))
	}
}

// readTogether has files read in many threads of several processes, all at once. In the name, %d is the
// number of the process.
func readTogether(t *testing.T, processes, threads int, file string) {
	var starts []io.Closer
	var ends []func() error
	for i := range processes {
		cmd := inRole("readers", fmt.Sprint(threads), fmt.Sprintf(file, i), "verified\n")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		starts = append(starts, in)
		ends = append(ends, func() error {
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("%w: %.1000s", err, errs.Bytes())
			}
			return nil
		})
	}
	began := time.Now()
	for _, start := range starts {
		start.Close()
	}
	for _, end := range ends {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%s: %d readers in %v", filepath.Base(file), processes*threads, time.Since(began))
}

// openFiles counts what a process has open of the disk. (Go and go-fuse keep pipes.)
func openFiles(pid int) int {
	n := 0
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, house.Dir) {
			n++
		}
	}
	return n
}

// timesOpened counts how often anybody opens a file while do runs.
func timesOpened(t testing.TB, file string, do func()) int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Two equal events in a row become one; so the closing is watched as well.
	if _, err = unix.InotifyAddWatch(fd, file, unix.IN_OPEN|unix.IN_CLOSE); err != nil {
		t.Fatal(err)
	}
	do()
	opens := 0
	for buf := make([]byte, 1<<20); ; {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return opens
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < n; at += unix.SizeofInotifyEvent {
			mask := uint32(buf[at+4]) | uint32(buf[at+5])<<8
			if mask&unix.IN_OPEN != 0 {
				opens++
			}
		}
	}
}

// serveAndDump mounts a registry in the foreground, has it used, and ends it by SIGQUIT, on which a Go
// program says what each of its goroutines is about.
func serveAndDump(t *testing.T, registry string, use func(mnt string, pid int)) (goroutines []string) {
	t.Helper()
	mnt := newDir(t, "mnt")
	cmd := command("irfs", "mount", "-f", "-c", key("root-ca.pub"), registry, mnt)
	cmd.Env = append(cmd.Env, "GOTRACEBACK=all")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	for end := time.Now().Add(10 * time.Second); exec.Command("mountpoint", "-q", mnt).Run() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("not mounted: %s", errs.String())
		}
	}
	use(mnt, cmd.Process.Pid)
	time.Sleep(200 * time.Millisecond)
	cmd.Process.Signal(syscall.SIGQUIT)
	cmd.Wait()
	for part := range strings.SplitSeq(errs.String(), "\n\n") {
		if strings.Contains(part, "goroutine ") && strings.Contains(part, "[") {
			goroutines = append(goroutines, part)
		}
	}
	return goroutines
}

// TestReadersBesideCollect: an image is signed by two vendors in turn, and what that replaces is removed at
// once. The image is in order all the while, and that is what a reader sees, whatever of it he reads.
func TestReadersBesideCollect(t *testing.T) {
	house.Need(t, "fuse")
	second := secondVendor(t)
	registry := newDir(t, "registry")
	l := sample.New()
	l.Tag("stable", l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")))
	must(t, l.WriteDir(registry+"/app"))
	run(t, "irfs", append([]string{"sign-image", "-r", registry, "-a", "app", "-d", "stable"}, signing()...)...)
	mnt := mount(t, registry)
	dir := mnt + "/app/tags/stable/"

	var ended atomic.Bool
	var reads, signings, runs atomic.Int64
	var all sync.WaitGroup
	repeat := func(do func(n int) error) {
		all.Go(func() {
			for n := 0; !ended.Load(); n++ {
				if err := do(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	repeat(func(n int) error {
		signings.Add(1)
		return writeOnce(dir+"sign", []string{second, key("vendor.prv")}[n%2])
	})
	repeat(func(int) error {
		runs.Add(1)
		_, err := try("irfs", "gc", "-r", registry, "--grace", "0s")
		if err != nil && strings.Contains(err.Error(), "another process is changing") {
			return nil
		}
		return err
	})
	for range 3 {
		repeat(func(n int) error {
			reads.Add(1)
			name := []string{"verify", "verify-full", "reason", "signature", "vendor.pub", "vendor.pub.sig", "manifest.json", "config.json"}[n%8]
			text, err := os.ReadFile(dir + name)
			if err == nil && strings.Contains(string(text), "corrupt") {
				err = fmt.Errorf("%s: %q", name, text)
			}
			return err
		})
	}
	time.Sleep(map[bool]time.Duration{false: 3 * time.Second, true: 2 * time.Minute}[full])
	ended.Store(true)
	all.Wait()
	t.Logf("%d reads beside %d signings and %d runs of gc", reads.Load(), signings.Load(), runs.Load())
}
