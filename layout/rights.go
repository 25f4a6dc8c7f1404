package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Rights are what somebody may do for whom this process changes a registry, and may do more itself. They call ask on a thread that has
// them, and return its error: nil if he may make files in an open directory. dir is the directory's status: where nobody knows what
// he may do, its mode has to say it. nil: what this process may do itself.
type Rights func(ctx context.Context, dir Attr, ask func() error) error

// may asks whether somebody may make files in an open directory, and, unless that is "", put another file in the place of the one of
// that name there.
func (rights Rights) may(ctx context.Context, dirfd int, what, name string) error {
	if rights == nil {
		return nil
	}
	attr, err := fstat(dirfd, what)
	if err != nil {
		return err
	}
	return rights(ctx, permitted(dirfd, attr), func() error {
		if err := mayCreate(dirfd, what); err != nil || name == "" {
			return err
		}
		return mayReplace(dirfd, attr, name)
	})
}

// mayReplace returns an error if this thread may not put another file in the place of one: in a directory with the sticky bit, only the owner of
// the file or of the directory may, or who has CAP_FOWNER (unlink(2), EPERM).
func mayReplace(dirfd int, dir Attr, name string) error {
	if dir.Mode&fs.ModeSticky == 0 {
		return nil
	}
	file, err := statBeneath(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	me, _ := unix.SetfsuidRetUid(-1) // which sets nothing
	if uint32(me) == file.UID || uint32(me) == dir.UID {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err == nil && sets[0].Effective&(1<<unix.CAP_FOWNER) != 0 {
		return nil
	}
	return pathError("access", name, unix.EACCES)
}

// ask returns an error unless somebody with these rights may change the app, whose directory is open.
func (a *App) ask(ctx context.Context, rights Rights, dirfd int) error {
	return a.refusal(rights.may(ctx, dirfd, a.Name, indexName))
}

// ask returns an error unless whoever wants the change may make files in an open directory of blobs (Rights.may). Who may write the app's
// directory may change the app, but not what is somebody else's in it: another directory may have come to that name, too.
func (l *locked) ask(ctx context.Context, dirfd int, name string) error {
	app, err1 := fstat(l.dirfd, l.app.Name)
	dir, err2 := fstat(dirfd, l.app.Name)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if dir.UID == app.UID && dir.Mode&fs.ModeSticky == 0 {
		return nil
	}
	return l.app.refusal(l.rights.may(ctx, dirfd, l.app.Name, name))
}

func (a *App) refusal(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("you may not change the app %s: %w", a.Name, err)
	}
	return err
}
