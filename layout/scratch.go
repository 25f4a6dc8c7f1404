package layout

// A Scratch is a file without a name on the registry's file system, for bytes
// that arrive in any order. It is gone when it is closed, or its process is.
type Scratch struct {
	file *newFile
	work *work // where the file system has no unnamed files
}

// NewScratch makes an empty Scratch.
func (r *Registry) NewScratch() (*Scratch, error) {
	const what = "working file in the registry"
	f, err := createUnnamed(r.fd, what)
	if err != nil || f != nil {
		return &Scratch{f, nil}, err
	}
	clean(r.fd)
	w, err := newWork(r.fd)
	if err != nil {
		return nil, err
	}
	if f, err = createNamed(w, what); err != nil {
		w.close()
		return nil, err
	}
	return &Scratch{f, w}, nil
}

// Close frees it.
func (s *Scratch) Close() {
	s.file.close()
	if s.work != nil {
		s.work.close()
	}
}

// ReadAt reads like io.ReaderAt; holes are zeros.
func (s *Scratch) ReadAt(p []byte, off int64) (int, error) {
	return readAt(s.file.fd, s.file.what, p, off)
}

// WriteAt writes like io.WriterAt.
func (s *Scratch) WriteAt(p []byte, off int64) (int, error) {
	return writeAt(s.file.fd, s.file.what, p, off)
}

// Truncate sets the size.
func (s *Scratch) Truncate(size int64) error {
	return truncate(s.file.fd, s.file.what, size)
}
