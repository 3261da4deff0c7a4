package sandbox
// Process is a running sandbox, or a command that Exec started in one.
//
//	func MaybeInit()
//	func Start(ctx context.Context, s Spec) (*Process, error)
//	func Exec(ctx context.Context, pid int, c Command) (*Process, error)
//	(*Process) PID() int; PidFD() *os.File; Created() []string
//	(*Process) Terminal() *os.File; Resize(Size) error
//	(*Process) Wait() (Status, error); Signal(unix.Signal) error; Kill() error
//	(*Process) Group() *Group: Freeze, Thaw, Kill, Stats, Update(Limits), Paths
type Process struct{}
