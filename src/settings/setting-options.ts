/** The options of a setting's schema, beside those of JSON Schema. */
export interface SettingOptions {
  /** The meaning, as Markdown for docs/settings.md. */
  description: string
  /** The end of an error message that begins with the name of the setting. */
  rule?: string
  /** The value in .env.example, if it is not the default. */
  example?: string
  /** The default as Markdown, if it depends on something. */
  defaultText?: string
  /** The value may be in a file, whose path is in `<name>_FILE`: commands such as `ps` show environments. */
  isSecret?: true
  /** The value comes from docker-compose.yml itself, its image or its mounts, and not from its environment or `.env`. */
  isSetByCompose?: true
}
