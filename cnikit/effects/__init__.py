"""The only code that changes the world: kernel, namespaces, sysctls, delegates, leases."""
