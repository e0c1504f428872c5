/**
 * Bounds what may wait at one place, by number and by bytes, so that nobody fills it for all: as many tenants as wait
 * have an equal share of it each, and one alone has all of it. A tenant that comes to a place filled by another gets its
 * share nevertheless, so what waits in all can pass the bound for as long as the other is above its own share.
 */
export class FairShare {
  private readonly tenants = new Map<string, { count: number; bytes: number }>();

  constructor(private readonly most: { readonly count: number; readonly bytes: number }) {}

  /** Takes a place for something of so many bytes. @returns false when the tenant has all that it may have */
  enter(tenant: string, bytes: number): boolean {
    const own = this.tenants.get(tenant);
    const sharers = own ? this.tenants.size : this.tenants.size + 1;
    const count = own?.count ?? 0;
    // The first one always fits, however large it is.
    const isFull = count >= this.most.count / sharers || (own?.bytes ?? 0) >= this.most.bytes / sharers;
    if (count > 0 && isFull) return false;
    if (own) {
      own.count += 1;
      own.bytes += bytes;
    } else this.tenants.set(tenant, { count: 1, bytes });
    return true;
  }

  /** Gives a place back that was taken with `enter`. */
  leave(tenant: string, bytes: number): void {
    const own = this.tenants.get(tenant);
    if (!own) return;
    own.count -= 1;
    own.bytes -= bytes;
    if (own.count === 0) this.tenants.delete(tenant);
  }
}
