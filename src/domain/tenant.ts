import { type Decider } from './decider.js';
import { type EventData, type TenantEvent } from './session.events.js';

/** The reserved stream id that holds a tenant's own events; no session id may begin with `~`. */
export const TENANT_STREAM = '~tenant';

export const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;

/** Raise this number when `TenantState` or `evolve` changes. */
export const TENANT_STATE_VERSION = 1;

/** A tenant's own settings. They override the settings file, which overrides the defaults. */
export interface TenantState {
  readonly version: number;
  readonly overrides: EventData<'TenantSettingsChanged'>;
}

export class ChangeTenantSettings {
  readonly type = 'ChangeTenantSettings';
  /** `null` removes a setting. */
  constructor(readonly settings: EventData<'TenantSettingsChanged'>) {}
}

export const tenantDecider: Decider<TenantState, ChangeTenantSettings, TenantEvent> = {
  initialState: { version: 0, overrides: {} },
  decide({ settings }, { overrides }) {
    const current: Record<string, unknown> = overrides;
    const changed = Object.entries(settings).filter(
      ([key, value]) => value !== undefined && (current[key] ?? null) !== value,
    );
    if (changed.length === 0) return { events: [] };
    return { events: [{ type: 'TenantSettingsChanged', data: Object.fromEntries(changed) }] };
  },
  evolve: (state, event) => ({
    version: state.version + 1,
    overrides: Object.fromEntries(
      Object.entries({ ...state.overrides, ...event.data }).filter(([, value]) => value !== null),
    ),
  }),
};
