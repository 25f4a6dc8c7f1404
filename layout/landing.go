package layout

import (
	"errors"
	"hash"
	"io"
	"io/fs"
	"path"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A lander works on files while they arrive: what was written a moment ago is
// hashed while the next bytes come in. A large file is synced as soon as it was
// written; small ones are synced together at the end, for a file system has much
// less to do for many fsyncs at once than for one after the other.
type lander struct {
	chunks chan chunk // as many as may wait to be hashed

	syncs   errgroup.Group
	waiting []*newFile
}

type chunk struct {
	hash hash.Hash
	data *[]byte         // a buffer
	end  chan<- struct{} // told when everything before was hashed
}

const (
	landingBuffer  = 128 << 10 // bytes, as much as one write through FUSE brings
	landingBuffers = 3         // that wait to be hashed
	smallFile      = 32 << 10  // bytes of a file that is hashed without further ado
	largeFile      = 4 << 20   // bytes of a file that is not kept waiting for its sync
	maxWaiting     = 64        // files that are
	maxSyncs       = 16        // at once
)

func newLander() *lander {
	l := &lander{chunks: make(chan chunk, landingBuffers)}
	l.syncs.SetLimit(maxSyncs)
	go func() {
		for c := range l.chunks {
			if c.end != nil {
				c.end <- struct{}{}
				continue
			}
			c.hash.Write(*c.data)
			putBuffer(c.data)
		}
	}()
	return l
}

// sync has a file or directory synced, and closed, at the latest by flush.
func (l *lander) sync(f *newFile, size int64) {
	l.waiting = append(l.waiting, f)
	if size >= largeFile || len(l.waiting) >= maxWaiting {
		l.start()
	}
}

func (l *lander) start() {
	for _, f := range l.waiting {
		l.syncs.Go(func() error {
			defer f.close()
			return fsync(f.fd, f.what)
		})
	}
	l.waiting = nil
}

// flush waits until everything is synced, and says how that went.
func (l *lander) flush() error {
	l.start()
	return l.syncs.Wait()
}

// close ends the work. What waits for its sync is closed without one.
func (l *lander) close() {
	close(l.chunks)
	for _, f := range l.waiting {
		f.close()
	}
	l.syncs.Wait()
}

// buffers are of landingBuffer bytes.
var buffers = sync.Pool{New: func() any { b := make([]byte, landingBuffer); return &b }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	*b = (*b)[:landingBuffer]
	buffers.Put(b)
}

// copy copies r to w, which may be nil, hashes it, and gives what it begins with.
func (l *lander) copy(w io.Writer, r io.Reader, h hash.Hash) (head []byte, n int64, err error) {
	waiting := false
	for err == nil {
		buf := getBuffer()
		k := 0
		for k < smallFile && err == nil {
			var more int
			more, err = r.Read((*buf)[k:])
			k += more
		}
		if n == 0 {
			head = append(head, (*buf)[:min(k, 10)]...)
		}
		n += int64(k)
		if k > 0 && w != nil {
			if _, werr := w.Write((*buf)[:k]); werr != nil {
				err = werr
			}
		}
		if err != nil && !waiting {
			h.Write((*buf)[:k])
			putBuffer(buf)
			break
		}
		waiting = true
		*buf = (*buf)[:k]
		l.chunks <- chunk{hash: h, data: buf}
	}
	if waiting {
		end := make(chan struct{}, 1)
		l.chunks <- chunk{end: end}
		<-end
	}
	if err == io.EOF {
		err = nil
	}
	return head, n, err
}

// create makes a file of the staged app, by its path in it.
func (u *unpacking) create(name string) (*newFile, error) {
	fd, err := openBeneath(u.dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &newFile{what: name, fd: fd}, nil
}

// finish gives a file that was written its owner, and has it synced and closed.
func (u *unpacking) finish(f *newFile, size int64) error {
	if err := own(f.fd, f.what, u.owner, 0o644); err != nil {
		f.close()
		return err
	}
	u.lander.sync(f, size)
	return nil
}

// land writes a file of the archive into the staged app, as the blob that it
// has to be (want), or as that which it turns out to be.
func (u *unpacking) land(name string, r io.Reader, size int64, want digest.Digest) (part, error) {
	if want == "" {
		return u.landUnnamed(name, r)
	}
	if err := u.mkdirs(path.Dir(BlobPath(want))); err != nil {
		return part{}, err
	}
	hash := want.Algorithm().Hash()
	var file *newFile
	var to io.Writer
	there, err := u.link(want, size)
	if err == nil && !there {
		file, err = u.create(BlobPath(want))
		to = file
	}
	if err != nil {
		return part{}, err
	}
	head, n, err := u.lander.copy(to, r, hash)
	if err == nil && digest.NewDigest(want.Algorithm(), hash) != want {
		err = corruptf("archive: %q: its bytes do not have this digest", name)
	}
	if file != nil && err == nil {
		return part{want, n, Compressed(head), ""}, u.finish(file, n)
	}
	if file != nil {
		file.close()
	}
	return part{want, n, Compressed(head), ""}, err
}

// landUnnamed lands what has its digest not for a name.
func (u *unpacking) landUnnamed(name string, r io.Reader) (p part, err error) {
	file, err := createNamed(u.work, name)
	if err != nil {
		return part{}, err
	}
	defer func() {
		if err != nil {
			file.close()
		}
	}()
	hash := digest.SHA256.Hash()
	if u.in.Compress && path.Ext(name) == ".tar" {
		p, err = u.lander.compress(file, r)
	} else {
		var head []byte
		head, p.size, err = u.lander.copy(file, r, hash)
		p.digest, p.compression = digest.NewDigest(digest.SHA256, hash), Compressed(head)
	}
	if err != nil {
		return part{}, err
	}
	to := BlobPath(p.digest)
	if err := u.mkdirs(path.Dir(to)); err != nil {
		return part{}, err
	}
	_, there := u.blobs[p.digest] // the same twice
	if !there {
		if there, err = u.link(p.digest, p.size); err != nil {
			return part{}, err
		}
	}
	if there {
		file.close()
		return p, nil
	}
	if err := file.place(u.dirfd, to); err != nil {
		return part{}, err
	}
	return p, u.finish(file, p.size)
}

// compress is copy with gzip. A layer that is compressed stays as it is.
func (l *lander) compress(w io.Writer, r io.Reader) (part, error) {
	diff, hash := digest.SHA256.Hash(), digest.SHA256.Hash()
	counted := &counter{w: io.MultiWriter(w, hash)}
	z := gzip.NewWriter(counted)
	sniffed := &sniffer{plain: counted, zipped: z}
	_, _, err := l.copy(sniffed, r, diff)
	if err == nil && sniffed.to != sniffed.plain {
		err = z.Close()
	}
	p := part{digest: digest.NewDigest(digest.SHA256, hash), size: counted.n, compression: sniffed.compression}
	if sniffed.compression == "" {
		p.compression, p.diffID = "gzip", digest.NewDigest(digest.SHA256, diff)
	}
	return p, err
}

// A sniffer sends what is compressed already one way, and anything else another.
type sniffer struct {
	plain, zipped, to io.Writer
	compression       string
}

func (s *sniffer) Write(p []byte) (int, error) {
	if s.to == nil {
		s.to = s.zipped
		if s.compression = Compressed(p); s.compression != "" {
			s.to = s.plain
		}
	}
	return s.to.Write(p)
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// link gives the staged app a blob that the app it is for has already, if its
// bytes are right: the same file under one more name. Only a file of the importer's, or of root's, that nobody else may write is shared so.
func (u *unpacking) link(d digest.Digest, size int64) (bool, error) {
	if !u.knows {
		return false, nil
	}
	fd, err := openBlob(u.ctx, u.known, BlobPath(d), d, size)
	if err != nil || fd < 0 {
		return false, u.ctx.Err() // after any other error it is written
	}
	defer closeFD(fd)
	if !sharable(fd, u.owner) {
		return false, nil
	}
	if err := fsync(fd, BlobPath(d)); err != nil { // whoever wrote it may not have
		return false, err
	}
	err = linkOpen(fd, u.dirfd, BlobPath(d))
	if errors.Is(err, fs.ErrExist) {
		return false, err
	}
	return err == nil, nil // else protected_hardlinks (proc_sys_fs(5)), or a file system without links
}

// sharable reports whether only that user and root may write an open file.
func sharable(fd int, owner Owner) bool {
	attr, err := fstat(fd, "")
	if err != nil || attr.UID != uint32(owner.UID) && attr.UID != 0 || attr.Mode.Perm()&0o002 != 0 {
		return false
	}
	return attr.Mode.Perm()&0o020 == 0 // nor lets an ACL anybody write, for these bits are its mask
}
