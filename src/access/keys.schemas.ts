import { z } from 'zod';
import { moment } from '../domain/session.events.js';
import { TENANT_ID } from '../domain/tenant.js';
import { ALL_TENANTS, SCOPES } from './caller.js';

/** What keys are asked for with, by the routes and by the command line, and how they are shown. */

export const keyTenant = z
  .union([z.literal(ALL_TENANTS), z.string().regex(TENANT_ID)], {
    error:
      'must be a tenant id (1 to 63 of a-z 0-9 _ -, beginning with a letter or digit) or * for an operator',
  })
  .meta({ description: 'the one tenant that the key reaches, or `*` for the key of an operator' });
const name = z
  .string()
  .regex(/^[\w.@-]{1,64}$/, 'must be 1 to 64 letters, digits or ._@-')
  .meta({ description: 'the actor of what its holder does' });
const scopes = z
  .array(z.enum(SCOPES, `must be one of: ${SCOPES.join(', ')}`))
  .min(1)
  .max(SCOPES.length);
const time = z.iso.datetime();

export const NewKey = z
  .strictObject({
    tenant: keyTenant,
    name,
    scopes: scopes.optional().meta({ description: 'all but `admin` unless given; all for an operator' }),
    expiresAt: moment
      .refine((text) => Date.parse(text) > Date.now(), 'must be in the future')
      .optional()
      .meta({ description: 'without it the key holds until it is revoked' }),
  })
  .refine((key) => key.tenant === ALL_TENANTS || !key.scopes?.includes('admin'), {
    path: ['scopes'],
    error: 'may hold admin only for an operator: the tenant *',
  });

export const Key = z
  .object({
    id: z.string(),
    tenant: keyTenant,
    name: name.meta({ description: 'unique among the keys of the tenant that are not revoked' }),
    scopes,
    createdAt: time,
    createdBy: z.string(),
    expiresAt: time.nullable(),
    revokedAt: time.nullable(),
  })
  .meta({ id: 'ApiKey' });
export const CreatedKey = Key.extend({
  key: z.string().meta({ description: 'what its holder presents; it is shown this once' }),
}).meta({ id: 'CreatedApiKey' });
export const KeyList = z.object({ data: z.array(Key), nextCursor: z.string().nullable() });

export const ListKeysQuery = z.strictObject({
  tenant: keyTenant.optional(),
  limit: z.coerce.number().int().min(1).max(200).default(50),
  cursor: z.string().min(1).max(2048).optional(),
});
/** Where a page of keys ended. */
export const KeyCursor = z.strictObject({ createdAt: moment, id: z.string() });
export const keyPath = z.string().min(1).max(64);

export type NewKey = z.infer<typeof NewKey>;
export type ApiKey = z.infer<typeof Key>;
