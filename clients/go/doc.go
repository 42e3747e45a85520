// Package weave is a client of weave-compute, the daemon that serves diffusion models over a Unix socket.
//
// It speaks version 2 of the protocol (docs/protocol.md). One [Client] is one connection; any number of goroutines
// may use it at once, and any number of jobs may be in flight on it:
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
// Cancelling the context of a request cancels it in the daemon too. A connection that was lost stays lost, and every
// call fails with [ErrClosed], until [Client.Reconnect] is called: requests are never sent twice behind the
// caller's back.
package weave
