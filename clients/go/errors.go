package weave

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed is wrapped by the errors of all calls after the connection was lost or closed.
	// [Client.Reconnect] restores a lost connection, but not a closed client.
	ErrClosed = errors.New("weave: the connection is closed")
	// ErrProtocol is wrapped if the other side violates version 2 of the protocol. The connection is closed then,
	// so the error wraps ErrClosed too.
	ErrProtocol = errors.New("weave: protocol error")
)

// ErrorCode is the reason why the daemon refused or failed a request. Each code is an error itself, so that
// errors.Is(err, weave.QueueFull) tests for it. A newer daemon may have codes that are not listed here.
type ErrorCode string

// The daemon's error codes (docs/protocol.md, "Errors").
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

// Error returns the code.
func (code ErrorCode) Error() string { return string(code) }

// Error is the daemon's error for a request that it refused or that failed.
type Error struct {
	Code    ErrorCode
	Message string // for people; never contains a path
	// Field is the request's invalid field, or "" if the error is not about one field.
	Field string
	// Value is the field's value: a json.Number, a string, or nil if the daemon did not send it.
	Value any
	// Min and Max are the inclusive bounds, or "" if there is none.
	Min, Max json.Number
	// RetryAfter is how long to wait before trying again, or 0 if the daemon did not send it.
	RetryAfter time.Duration
}

// Error returns the code and the message.
func (e *Error) Error() string { return fmt.Sprintf("weave: %s: %s", e.Code, e.Message) }

// Unwrap returns the code, for errors.Is.
func (e *Error) Unwrap() error { return e.Code }

// lostError is the error of all calls after the connection was lost because of cause, or closed by Close (nil).
func lostError(cause error) error {
	if cause == nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, cause)
}
