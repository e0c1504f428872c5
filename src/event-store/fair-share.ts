/**
 * Limits the number and the bytes of what waits in a queue, so that no tenant fills the queue for all. The limit is
 * divided equally among the tenants that wait; a tenant that waits alone may use all of it. A tenant that arrives at a
 * queue filled by another still gets its share, so the total may exceed the limit until the other tenant has fallen to
 * its own share.
 */
export class FairShare {
  private readonly tenants = new Map<string, { count: number; bytes: number }>();

  constructor(private readonly most: { readonly count: number; readonly bytes: number }) {}

  /** Reserves a place for an entry of `bytes`. @returns false when the tenant has used up its share */
  enter(tenant: string, bytes: number): boolean {
    const own = this.tenants.get(tenant);
    const sharers = own ? this.tenants.size : this.tenants.size + 1;
    const count = own?.count ?? 0;
    // The first entry of a tenant always fits, however large it is.
    const isFull = count >= this.most.count / sharers || (own?.bytes ?? 0) >= this.most.bytes / sharers;
    if (count > 0 && isFull) return false;
    if (own) {
      own.count += 1;
      own.bytes += bytes;
    } else this.tenants.set(tenant, { count: 1, bytes });
    return true;
  }

  /** Whether the tenant has an entry. */
  has(tenant: string): boolean {
    return this.tenants.has(tenant);
  }

  /** Adds bytes to an entry that is in already. @returns false when the tenant has used up its share */
  grow(tenant: string, bytes: number): boolean {
    const own = this.tenants.get(tenant);
    // The only entry of a tenant fits, however large it becomes.
    if (!own || (own.count > 1 && own.bytes >= this.most.bytes / this.tenants.size)) return false;
    own.bytes += bytes;
    return true;
  }

  /** Releases the place of an entry, with all bytes that `enter` and `grow` have reserved for it. */
  leave(tenant: string, bytes: number): void {
    const own = this.tenants.get(tenant);
    if (!own) return;
    own.count -= 1;
    own.bytes -= bytes;
    if (own.count === 0) this.tenants.delete(tenant);
  }
}
