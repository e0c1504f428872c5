/** The session of OpenAI Agents JS, kept by a Colloquy service. */
export { ColloquySession, type ColloquySessionOptions } from './client/agents-session.js';
