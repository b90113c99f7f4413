//! Burstbay: `rdma-transport`.
