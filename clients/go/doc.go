// Package weave is a client of weave-compute, the daemon that serves diffusion models over a Unix socket.
//
// It speaks version 2 of the protocol (docs/protocol.md). A [Client] is one connection. Any number of goroutines may
// use it concurrently, and any number of jobs may be in flight on it:
//
//	client, err := weave.Dial(ctx, "")
//	...
//	defer client.Close()
//	job, err := client.Generate(ctx, weave.GenerateRequest{Prompt: "a red circle on a blue background"})
//	...
//	for event := range job.Events() {
//		...
//	}
//	images, done, err := job.Wait()
//
// Cancelling the context of a request cancels it in the daemon too. After the connection is lost, every call fails
// with [ErrClosed] until [Client.Reconnect] is called: the client never sends a request twice by itself.
package weave
