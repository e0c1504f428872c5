/** The request header with which an operator names a cell. */
export const CELL_HEADER = 'Colloquy-Cell';

/**
 * What a route is about, which is where it is answered when there are several cells: a tenant, in the tenant's cell; a
 * cell, in the one that the operator names; or the whole deployment, in the first.
 */
export type Subject = 'tenant' | 'cell' | 'deployment';

/** The first one that a route begins with holds; all others are about the tenant of the caller. */
const SUBJECTS: readonly (readonly [route: string, Subject])[] = [
  ['/metrics', 'deployment'],
  ['/v1/admin/cells', 'deployment'],
  ['/v1/admin/keys', 'deployment'],
  ['/v1/admin/tenants/', 'tenant'],
  ['/v1/admin/', 'cell'],
  // The notary signs all that a log holds, of whatever tenant.
  ['/v1/checkpoints', 'cell'],
];

/** Both the service and the document of its API go by this, so that they cannot differ. */
export const subjectOf = (route: string): Subject =>
  SUBJECTS.find(([beginning]) => route.startsWith(beginning))?.[1] ?? 'tenant';
