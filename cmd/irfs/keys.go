package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	irfs "irfs/fs"
	"irfs/sign"
)

// readSmall reads a key or signature file that was named, which may be a pipe.
func readSmall(name string) ([]byte, error) {
	return unlessInterrupted(func() ([]byte, error) { return readNamed(name) })
}

func readNamed(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() && st.Mode()&os.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	return readLimited(f)
}

// readFound reads a key or signature file that nobody named, but that lies in a directory: whoever may write there may have put anything there. It
// must be a regular file, or a link to one. Nothing else is opened, for that might wait for ever.
func readFound(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		var f *os.File
		if f, err = os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err != nil {
			return nil, err
		}
		defer f.Close()
		if st, err = f.Stat(); err != nil { // it may be another by now
			return nil, err
		}
		if st.Mode().IsRegular() {
			return readLimited(f)
		}
	}
	return nil, &irfs.Hint{Err: fmt.Errorf("%s: not a regular file", name), Text: "take it out of that directory, or give the files one by one"}
}

func readLimited(f *os.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, sign.MaxKeyFile+1))
	if err == nil && len(data) > sign.MaxKeyFile {
		err = fmt.Errorf("%s: over the limit of %d bytes for a key or signature", f.Name(), sign.MaxKeyFile)
	}
	return data, err
}

func readPrivate(name string) (*sign.PrivateKey, error) {
	data, err := readSmall(name)
	if err != nil {
		return nil, err
	}
	key, err := sign.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

func readPublic(name string, read func(string) ([]byte, error)) (*sign.PublicKey, error) {
	data, err := read(name)
	if err != nil {
		return nil, err
	}
	key, err := sign.ParsePublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// readTrust reads the root CAs of -c, which may be directories of *.pub.
func readTrust(names []string) (*sign.Trust, error) {
	var cas []*sign.PublicKey
	for _, name := range names {
		files, read := []string{name}, readSmall
		if st, err := os.Stat(name); err == nil && st.IsDir() {
			if files, err = keysIn(name); err != nil {
				return nil, err
			}
			if len(files) == 0 {
				return nil, fmt.Errorf("%s: there is no *.pub in this directory", name)
			}
			read = readFound
		}
		for _, file := range files {
			ca, err := readPublic(file, read)
			if err != nil {
				return nil, err
			}
			cas = append(cas, ca)
		}
	}
	return sign.NewTrust(cas...), nil
}

// keysIn lists the *.pub in a directory, sorted.
func keysIn(dir string) (files []string, err error) {
	list, err := os.ReadDir(dir)
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".pub") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, err
}

// signerFlags are the flags that say with which keys an image is signed.
type signerFlags struct {
	vendor, certificate, caPrv string
	caPubs                     []string
}

func (s *signerFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&s.vendor, "vendor-prv", "v", "", "the vendor's private `key`")
	flags.StringVarP(&s.certificate, "vendor-pub-signature", "s", "", "the root CA's `signature` of the vendor's public key")
	flags.StringArrayVarP(&s.caPubs, "ca-pub", "c", nil, "the root CA's public `key` (or a directory of *.pub; may be repeated)")
	flags.StringVarP(&s.caPrv, "ca-prv", "x", "", "the root CA's private `key`, in the place of -s and -c")
}

// check is about the words alone; what they name is read by signer.
func (s *signerFlags) check(c *command) error {
	switch {
	case s.caPrv != "" && (s.certificate != "" || len(s.caPubs) > 0):
		return &usageError{c, "-x makes the certificate itself; -s and -c do not go with it"}
	case s.caPrv == "" && s.certificate == "":
		return &usageError{c, "give -s VENDOR.PUB.SIG with -c ROOT-CA.PUB, or -x ROOT-CA.PRV"}
	case s.caPrv == "" && len(s.caPubs) == 0:
		return &usageError{c, "-c ROOT-CA.PUB is missing: the certificate of -s is checked with it"}
	}
	return nil
}

func (s *signerFlags) signer() (*sign.Signer, error) {
	vendor, err := readPrivate(s.vendor)
	if err != nil {
		return nil, err
	}
	if s.caPrv != "" {
		ca, err := readPrivate(s.caPrv)
		if err != nil {
			return nil, err
		}
		return sign.NewCertifyingSigner(vendor, ca)
	}
	trust, err := readTrust(s.caPubs)
	if err != nil {
		return nil, err
	}
	certificate, err := readSmall(s.certificate)
	if err != nil {
		return nil, err
	}
	signer, err := sign.NewSigner(vendor, certificate, trust)
	if err != nil && !errors.Is(err, sign.ErrKey) {
		return nil, trust.Explain(err, vendor.Public(), certificate, s.certificate, readFound)
	}
	return signer, err
}

// writeNew writes a file that must not be there yet, whole or not at all.
func writeNew(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		os.Remove(name)
	}
	return err
}

// differ refuses an output that would take the place of an input.
func differ(input, output string) error {
	in, err1 := os.Stat(input)
	out, err2 := os.Stat(output)
	if err1 == nil && err2 == nil && in.Mode().IsRegular() && os.SameFile(in, out) {
		return fmt.Errorf("%s: is the same file as %s, which would be lost", output, input)
	}
	return nil
}

// writeFile writes a file, in the place of one that is there, whole or not at
// all. What is not a regular file, such as /dev/stdout, is written to.
func writeFile(name string, data []byte) error {
	st, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return writeNew(name, data, 0o666)
	}
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return os.WriteFile(name, data, 0o666)
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(st.Mode().Perm()), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
