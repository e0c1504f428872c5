import { type Leases } from '../../src/event-store/leases.js';

/**
 * The leases of a process that is suspended: it renews nothing, hears nothing, and believes what it believed. Resolves when
 * what it had begun is over, which a test that sets the clock could otherwise not tell from a renewal.
 */
export async function suspend(leases: Leases): Promise<void> {
  const parts = leases as unknown as {
    readonly beating: Promise<void> | undefined;
    stopBeating(): void;
    stopListening(): void;
    stopWatching(): void;
  };
  parts.stopBeating();
  parts.stopListening();
  parts.stopWatching();
  while (parts.beating) await parts.beating;
}
