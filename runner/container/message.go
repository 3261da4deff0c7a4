package container

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors a message may carry.
const maxFiles = 3

// send writes a value as a line of JSON, and open files along with it, which
// the caller keeps.
func send(u *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if len(files) == 0 {
		_, err = u.Write(data)
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	n, _, err := u.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	if err == nil && n < len(data) {
		_, err = u.Write(data[n:])
	}
	return err
}

// receive reads a line of JSON into v, and the files that come with it, which
// the caller closes. What follows the line is read from the connection that
// is returned.
func receive(u *net.UnixConn, v any) (*conn, []*os.File, error) {
	var line []byte
	var files []*os.File
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
	end := -1
	for end < 0 {
		n, oobn, _, _, err := u.ReadMsgUnix(buf, oob)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			var more []*os.File
			more, err = passed(oob[:oobn])
			files = append(files, more...)
		}
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		if end = bytes.IndexByte(buf[:n], '\n'); end >= 0 {
			end += len(line)
		}
		line = append(line, buf[:n]...)
	}
	if err := json.Unmarshal(line[:end], v); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return &conn{u, bufio.NewReader(io.MultiReader(bytes.NewReader(line[end+1:]), u))}, files, nil
}

// passed takes the files out of control messages.
func passed(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	var files []*os.File
	for _, m := range messages {
		fds, rightsErr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
