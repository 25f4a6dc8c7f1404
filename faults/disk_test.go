package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A disk with a volatile cache is a file, MNT/disk, below a loop device. A process of its
// own serves it (the role "disk"), for one that served itself would deadlock. Whatever the
// loop driver asks of it, it writes down in a log before it answers: every write, and every
// flush, as which the driver sends FSYNC. From the log anyone can make every state that the
// disk may be in when the power goes.
//
// A record of the log is its offset, its length (8 bytes each, little endian), and the bytes.
// A flush has the offset flushed and no bytes.
const flushed = -1

// sector is what a disk writes whole or not at all. It is ext4's block: with a smaller one the
// file system itself could be torn.
const sector = 4096

// diskFile is MNT/disk.
type diskFile struct {
	fs.Inode
	data []byte
	log  *os.File
}

var (
	_ = fs.NodeOpener(&diskFile{})
	_ = fs.NodeGetattrer(&diskFile{})
	_ = fs.NodeReader(&diskFile{})
	_ = fs.NodeWriter(&diskFile{})
	_ = fs.NodeFsyncer(&diskFile{})
)

// serveDisk is the role "disk", with a mount point, the file with the disk's content, and the
// log's name. It says a line when the disk is there, and ends when that is unmounted.
func serveDisk(args []string) error {
	data, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(args[2], os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	disk := &diskFile{data: data, log: log}
	root := &fs.Inode{}
	server, err := fs.Mount(args[0], root, &fs.Options{
		// One request at a time, so that the log has them in the order in which they were answered.
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "disk", SingleThreaded: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, disk, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	server.Wait()
	return log.Close()
}

// Open sees to it that nothing stays in the kernel's cache.
func (d *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (d *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(len(d.data))
	return 0
}

func (d *diskFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	off = min(off, int64(len(d.data)))
	return fuse.ReadResultData(d.data[off:min(off+int64(len(dest)), int64(len(d.data)))]), 0
}

func (d *diskFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(data)) > int64(len(d.data)) {
		return 0, syscall.ENOSPC
	}
	if err := d.note(off, data); err != nil {
		return 0, syscall.EIO
	}
	copy(d.data[off:], data)
	return uint32(len(data)), 0
}

func (d *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if d.note(flushed, nil) != nil {
		return syscall.EIO
	}
	return 0
}

// note appends a record to the log, by one write.
func (d *diskFile) note(off int64, data []byte) error {
	record := binary.LittleEndian.AppendUint64(nil, uint64(off))
	record = binary.LittleEndian.AppendUint64(record, uint64(len(data)))
	_, err := d.log.Write(append(record, data...))
	return err
}

// A request is a record of the log.
type request struct {
	off  int64 // flushed for a flush
	data []byte
}

// readLog gives the requests, and how many there are in the log up to each of the given lengths.
func readLog(log []byte, lengths []int64) (requests []request, upTo []int) {
	upTo = make([]int, len(lengths))
	for at := int64(0); at < int64(len(log)); {
		off := int64(binary.LittleEndian.Uint64(log[at:]))
		size := int64(binary.LittleEndian.Uint64(log[at+8:]))
		requests = append(requests, request{off, log[at+16 : at+16+size]})
		at += 16 + size
		for i := range lengths {
			if at <= lengths[i] {
				upTo[i]++
			}
		}
	}
	return requests, upTo
}

// A platter is what is on a disk: its sectors, nil for zeros. Sectors are never changed where
// they are, so that a copy of the slice is one of the disk.
type platter [][]byte

func newPlatter(data []byte) platter {
	p := make(platter, len(data)/sector)
	for i := range p {
		p[i] = notZero(data[i*sector : (i+1)*sector])
	}
	return p
}

// notZero is a sector, or nil if it is all zeros.
func notZero(s []byte) []byte {
	if bytes.Count(s, []byte{0}) == len(s) {
		return nil
	}
	return s
}

// write writes, sector by sector, those of which keep says so.
func (p platter) write(r request, keep func() bool) {
	for off, data := r.off, r.data; len(data) > 0; {
		i, from := off/sector, off%sector
		n := min(int64(len(data)), sector-from)
		if keep() {
			s := make([]byte, sector)
			copy(s, p[i])
			copy(s[from:], data[:n])
			p[i] = notZero(s)
		}
		off, data = off+n, data[n:]
	}
}

// file gives the disk as a file in memory.
func (p platter) file() (*os.File, error) {
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "disk")
	err = f.Truncate(int64(len(p) * sector))
	for i, s := range p {
		if s != nil && err == nil {
			_, err = f.WriteAt(s, int64(i*sector))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// attach makes a file a block device. It is detached once the device is closed here and
// unmounted.
func attach(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 1000 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if err != unix.EBUSY { // somebody else was faster
			return nil, fmt.Errorf("loop device: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
	return nil, errors.New("no loop device is free")
}

// mountDevice mounts the ext4 on a device.
func mountDevice(device *os.File, mnt, options string) error {
	if err := unix.Mount(device.Name(), mnt, "ext4", 0, options); err != nil {
		return fmt.Errorf("mount of ext4: %w", err)
	}
	return nil
}

// unmountDevice unmounts. A process that was just started may have, for an instant, a file of it open.
func unmountDevice(mnt string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(mnt, 0)
		if err != unix.EBUSY || time.Now().After(end) {
			return err
		}
	}
}

// makeDisk makes an image of an ext4 of so many MiB, with what is in a directory. Its journal
// is the smallest that there is, so that it wraps.
func makeDisk(t *testing.T, image, content string, mebibytes int) {
	t.Helper()
	run(t, "mkfs.ext4", "-q", "-F", "-b", fmt.Sprint(sector), "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
		"-d", content, image, fmt.Sprintf("%dM", mebibytes))
}

// A liveDisk is a disk that is being served.
type liveDisk struct {
	log    string
	mnt    string
	server *exec.Cmd
	file   *os.File
	device *os.File
}

// startDisk serves the disk whose content is in image.
func startDisk(t *testing.T, image string) *liveDisk {
	t.Helper()
	d := &liveDisk{log: filepath.Join(newDir(t, "log"), "log"), mnt: newDir(t, "disk")}
	d.server = inRole("disk", d.mnt, image, d.log)
	d.server.Stderr = os.Stderr
	out, err := d.server.StdoutPipe()
	if err == nil {
		err = d.server.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("the disk's process did not start: %v", err)
	}
	if d.file, err = os.OpenFile(d.mnt+"/disk", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	if d.device, err = attach(d.file); err != nil {
		t.Fatal(err)
	}
	return d
}

// stop ends the disk, and its process. It may be called again.
func (d *liveDisk) stop(t *testing.T) {
	if d.server == nil {
		return
	}
	if d.device != nil {
		d.device.Close()
	}
	if d.file != nil {
		d.file.Close()
	}
	if err := unmountDevice(d.mnt); err != nil {
		t.Errorf("%s: %v", d.mnt, err)
		unix.Unmount(d.mnt, unix.MNT_DETACH)
	}
	if err := d.server.Wait(); err != nil {
		t.Errorf("the disk's process: %v", err)
	}
	d.server = nil
}

// length is that of the log.
func (d *liveDisk) length(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(d.log)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// since gives the requests from the time when the log had that length.
func (d *liveDisk) since(t *testing.T, length int64) []request {
	t.Helper()
	log, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	requests, _ := readLog(log[length:], nil)
	return requests
}

func flushes(requests []request) int {
	n := 0
	for _, r := range requests {
		if r.off == flushed {
			n++
		}
	}
	return n
}

// equal says whether the disk holds just this.
func (p platter) equal(data []byte) bool {
	return slices.EqualFunc(p, newPlatter(data), bytes.Equal)
}
