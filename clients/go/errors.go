package weave

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed is wrapped by every error of a call whose connection is lost, or was closed. What is lost
	// comes back with [Client.Reconnect]; a closed client does not.
	ErrClosed = errors.New("weave: the connection is closed")
	// ErrProtocol is wrapped where the other side does not speak version 2. It costs the connection, so the
	// error wraps ErrClosed too.
	ErrProtocol = errors.New("weave: protocol error")
)

// ErrorCode says why the daemon refused or failed a request. Each is an error, so that
// errors.Is(err, weave.QueueFull) says whether that is the reason. A newer daemon may have codes that are not here.
type ErrorCode string

// The codes that the daemon has (docs/protocol.md, "Errors").
const (
	InvalidFrame   ErrorCode = "invalid_frame"
	InvalidRequest ErrorCode = "invalid_request"
	UnknownModel   ErrorCode = "unknown_model"
	OutOfBounds    ErrorCode = "out_of_bounds"
	NoModel        ErrorCode = "no_model"
	QueueFull      ErrorCode = "queue_full"
	RateLimited    ErrorCode = "rate_limited"
	TimedOut       ErrorCode = "timed_out"
	Cancelled      ErrorCode = "cancelled"
	OutOfMemory    ErrorCode = "out_of_memory"
	WorkerFailed   ErrorCode = "worker_failed"
	ShuttingDown   ErrorCode = "shutting_down"
	Internal       ErrorCode = "internal"
)

// Error is the code itself.
func (code ErrorCode) Error() string { return string(code) }

// Error is what the daemon says of a request that it refused or that failed.
type Error struct {
	Code    ErrorCode
	Message string // for people; it never holds a path
	// Field is the request's field that is wrong, where it is one field.
	Field string
	// Value is what the field was: a json.Number, a string, or nil where the daemon does not say.
	Value any
	// Min and Max are the bound, both ends included, or "" where there is none.
	Min, Max json.Number
	// RetryAfter is how long to wait before asking again, or 0 where the daemon does not say.
	RetryAfter time.Duration
}

// Error names the code and the message.
func (e *Error) Error() string { return fmt.Sprintf("weave: %s: %s", e.Code, e.Message) }

// Unwrap gives the code, for errors.Is.
func (e *Error) Unwrap() error { return e.Code }

// lostError is what calls get once the connection is lost for the reason `cause`, or closed by Close (nil).
func lostError(cause error) error {
	if cause == nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, cause)
}
