module weave-compute/clients/go

go 1.22
