/** Where the paths of OpenAI's API begin. */
export const OPENAI_PREFIX = 'openai/v1';

/** A time of OpenAI's API: whole seconds since 1970. */
export const seconds = (time: string): number => Math.floor(Date.parse(time) / 1000);
